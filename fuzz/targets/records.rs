//! Records of the store, which anybody may have written. The first byte says of which kind.
#![no_main]

use libfuzzer_sys::fuzz_target;
use viaduct_model::{Block, Carver, Cidr, Claim, Node, Pool, Record};

/// A record that is read, is written in the same words again: nothing is lost by it.
fn read<T: Record>(name: &str, text: &[u8]) -> Option<T> {
    let record: T = serde_json::from_slice(text).ok()?;
    record.validate(name).ok()?;
    let written = serde_json::to_vec(&record).expect("a record cannot be written");
    let again: T = serde_json::from_slice(&written).expect("what was written cannot be read");
    assert!(record == again, "{record:?} became {again:?}");
    Some(record)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, text)) = bytes.split_first() else {
        return;
    };
    match kind % 4 {
        0 => {
            if let Some(pool) = read::<Pool>("p", text) {
                assert!(pool.block_len() <= pool.cidr.family().bits());
                let mut carver = Carver::new(&pool);
                if let Some(block) = carver.next_free() {
                    assert!(pool.cidr.covers(&block) && carver.take(&block));
                    assert!(carver.next_free() != Some(block));
                }
            }
        }
        1 => {
            let value: serde_json::Value = serde_json::from_slice(text).unwrap_or_default();
            let cidr = value["cidr"].as_str().and_then(|c| c.parse::<Cidr>().ok());
            let name = cidr.map_or_else(|| "10.0.0.0-26".to_owned(), |c| c.record_name());
            if let Some(block) = read::<Block>(&name, text) {
                assert!(block.rest() >= block.trust());
            }
        }
        2 => drop(read::<Node>("n", text)),
        _ => drop(read::<Claim>("n", text)),
    }
});
