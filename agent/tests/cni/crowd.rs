//! Clients that do not behave: silent, slow, many, or somebody else's.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use viaduct_cni::frame::MAX_FRAME;

use crate::harness::*;

#[test]
fn a_thousand_stuck_clients_do_not_stop_the_next_add() {
    if !inside("crowd::a_thousand_stuck_clients_do_not_stop_the_next_add") {
        return;
    }
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    block_on(async {
        let node = Node::new().await;
        let stuck: Vec<UnixStream> = (0..1000)
            .map(|i| {
                let mut stream = UnixStream::connect(node.run_dir.join("cni.sock")).unwrap();
                // Some say nothing, some half of a header, some half of a frame.
                let said: &[u8] = [&b""[..], b"\0\0", b"\0\0\x01\0{\"verb\":"][i % 3];
                stream.write_all(said).unwrap();
                stream
            })
            .collect();
        let begun = Instant::now();
        let pod = Pod::new("c1");
        ping(wired(node.add(&pod).await).addresses[0]);
        // Long before the first of them is given up.
        assert!(
            begun.elapsed() < Duration::from_secs(4),
            "{:?}",
            begun.elapsed()
        );
        node.del("c1").await;
        drop(stuck);
        node.is_clean().await;
    });
}

#[test]
fn a_client_that_stops_in_the_middle_is_given_up() {
    if !inside("crowd::a_client_that_stops_in_the_middle_is_given_up") {
        return;
    }
    block_on(async {
        let node = Node::new().await;
        let socket = node.run_dir.join("cni.sock");
        let replies = tokio::task::spawn_blocking(move || {
            let mut stuck: Vec<UnixStream> = (0..3)
                .map(|_| UnixStream::connect(&socket).unwrap())
                .collect();
            stuck[1].write_all(b"\0").unwrap();
            stuck[2].write_all(b"\0\0\x01\0{").unwrap();
            for stream in &stuck {
                stream
                    .set_read_timeout(Some(Duration::from_secs(60)))
                    .unwrap();
            }
            stuck.into_iter().map(reply).collect::<Vec<_>>()
        })
        .await
        .unwrap();
        for reply in replies {
            let why = refusal(reply.unwrap(), 101);
            assert!(why.contains("no whole request"), "{why}");
        }
        node.is_clean().await;
    });
}

#[test]
fn a_frame_of_64_kilobytes_is_read_and_a_longer_one_is_refused_by_its_header() {
    if !inside("crowd::a_frame_of_64_kilobytes_is_read_and_a_longer_one_is_refused_by_its_header") {
        return;
    }
    block_on(async {
        let node = Node::new().await;
        let socket = node.run_dir.join("cni.sock");
        let (long, longest) = tokio::task::spawn_blocking(move || {
            let send = |announced: usize, sent: usize| {
                let mut stream = UnixStream::connect(&socket).unwrap();
                let announced = u32::try_from(announced).unwrap();
                stream.write_all(&announced.to_be_bytes()).unwrap();
                stream.write_all(&vec![b' '; sent]).unwrap();
                let mut said = Vec::new();
                stream.read_to_end(&mut said).unwrap();
                String::from_utf8(said[4..].to_vec()).unwrap()
            };
            (send(MAX_FRAME + 1, 0), send(MAX_FRAME, MAX_FRAME))
        })
        .await
        .unwrap();
        assert!(long.contains("too long: at most 65536"), "{long}");
        assert!(longest.contains("not a message"), "{longest}");
        node.is_clean().await;
    });
}
