//! A server that stops answering, which all servers' tests share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use viaduct_datastore::{Connectivity, Store, StoreError};
use viaduct_model::Kind;

use crate::follower::{PATIENCE, eventually, picture, until};
use crate::proxy::Proxy;

/// Creates a pool, as soon as the store lets us.
pub async fn put(store: &Arc<dyn Store>, name: &str, value: &[u8]) {
    eventually("a write works", async || {
        match store.create(Kind::Pool, name, value, None).await {
            Ok(_) | Err(StoreError::AlreadyExists { .. }) => Some(()),
            Err(_) => None,
        }
    })
    .await;
}

/// Asserts that a list fails, and no later than this.
pub async fn list_fails_within(store: &Arc<dyn Store>, limit: Duration) {
    let begun = Instant::now();
    let hung = store.list(Kind::Pool).await;
    assert!(
        matches!(hung, Err(StoreError::Unavailable { .. })),
        "{hung:?}"
    );
    assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
}

/// Half a minute in which nothing passes.
pub struct Outage<'a> {
    /// Reaches the server always, and sees no outage.
    pub direct: Arc<dyn Store>,
    /// Reaches it through `proxy`.
    pub store: Arc<dyn Store>,
    /// Where nothing passes meanwhile.
    pub proxy: &'a Proxy,
    /// A pool's record.
    pub value: &'a [u8],
    /// The longest until it is noticed without a call.
    pub noticed: Duration,
    /// The longest that a call hangs.
    pub hangs: Duration,
}

impl Outage<'_> {
    /// Asserts that it is noticed and that nothing is lost; `meanwhile` is done in it.
    pub async fn survive(self, meanwhile: impl FnOnce()) {
        put(&self.direct, "a", self.value).await;
        let mut seen = picture(self.store.clone(), Kind::Pool);
        until(&mut seen, "told", |p| p.len() == 1).await;
        let mut connectivity = self.store.connectivity();
        self.proxy.freeze(true);
        let frozen = Instant::now();
        // Nobody calls: the watch has to notice that nothing passes.
        let gone = |c: &Connectivity| matches!(c, Connectivity::Disconnected { .. });
        let noticed = tokio::time::timeout(PATIENCE, connectivity.wait_for(gone)).await;
        noticed.expect("it is noticed").unwrap();
        let took = frozen.elapsed();
        assert!(took < self.noticed, "noticed after {took:?}");
        put(&self.direct, "b", self.value).await;
        list_fails_within(&self.store, self.hangs).await;
        meanwhile();
        tokio::time::sleep(Duration::from_secs(30).saturating_sub(frozen.elapsed())).await;
        self.proxy.freeze(false);
        let thawed = Instant::now();
        until(&mut seen, "what was missed is there", |p| p.len() == 2).await;
        let took = thawed.elapsed();
        assert!(took < Duration::from_secs(15), "{took:?}");
        put(&self.direct, "c", self.value).await;
        until(&mut seen, "and it goes on", |p| p.len() == 3).await;
        assert_eq!(*connectivity.borrow(), Connectivity::Connected);
    }
}
