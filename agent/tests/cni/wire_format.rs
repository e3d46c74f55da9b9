//! What clients may send, and what happens to those who send something else.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use viaduct_cni::protocol::{Request, Verb};

use crate::harness::*;

#[test]
fn malformed_requests_are_refused_and_harm_nobody() {
    if !inside("wire_format::malformed_requests_are_refused_and_harm_nobody") {
        return;
    }
    block_on(async {
        let node = Node::new().await;
        let socket = node.run_dir.join("cni.sock");
        let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let mut long = u32::MAX.to_be_bytes().to_vec();
        long.extend(b"{}");
        let mut garbage = 4u32.to_be_bytes().to_vec();
        garbage.extend(b"{{{{");
        let torn = 100u32.to_be_bytes().to_vec();
        for bytes in [long, garbage, torn, b"\0\0".to_vec()] {
            let socket = socket.clone();
            let reply = tokio::task::spawn_blocking(move || {
                let mut stream = UnixStream::connect(socket).unwrap();
                stream.write_all(&bytes).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                reply(stream).unwrap()
            })
            .await
            .unwrap();
            assert_eq!(code(&reply), 101);
        }

        let pod = Pod::new("c1");
        let netns = || -> OwnedFd { File::open(pod.netns()).unwrap().into() };
        let null = || -> OwnedFd { File::open("/dev/null").unwrap().into() };
        let own = || -> OwnedFd { File::open("/proc/self/ns/net").unwrap().into() };
        let unix = || -> OwnedFd { UnixStream::pair().unwrap().0.into() };
        let add = || request(Verb::Add, "c1", "/run/netns/x");
        assert_eq!(code(&node.ask(add(), vec![]).await), 101);
        assert_eq!(code(&node.ask(add(), vec![netns()]).await), 101);
        assert_eq!(code(&node.ask(add(), vec![null(), rtnetlink()]).await), 4);
        assert_eq!(code(&node.ask(add(), vec![own(), rtnetlink()]).await), 4);
        assert_eq!(code(&node.ask(add(), vec![netns(), null()]).await), 101);
        assert_eq!(code(&node.ask(add(), vec![netns(), unix()]).await), 101);
        let future = Request {
            protocol: 99,
            ..add()
        };
        assert_eq!(code(&node.ask(future, pod.descriptors()).await), 101);
        let mut hostile = add();
        hostile.id.container_id = "../../etc/passwd".into();
        assert_eq!(code(&node.ask(hostile, pod.descriptors()).await), 4);

        // More descriptors than any request has.
        let many: Vec<OwnedFd> = (0..5).map(|_| null()).collect();
        let crowd = socket.clone();
        let reply = tokio::task::spawn_blocking(move || {
            let stream = UnixStream::connect(crowd).unwrap();
            let fds: Vec<_> = many.iter().map(AsFd::as_fd).collect();
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(5))];
            let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
            assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
            let bytes = viaduct_cni::frame::encode(&request(Verb::Add, "c1", "")).unwrap();
            rustix::net::sendmsg(
                &stream,
                &[std::io::IoSlice::new(&bytes)],
                &mut control,
                rustix::net::SendFlags::empty(),
            )
            .unwrap();
            reply(stream).unwrap()
        })
        .await
        .unwrap();
        assert_eq!(code(&reply), 101);

        // Somebody who connects and says nothing keeps nobody waiting.
        let _silent = UnixStream::connect(&socket).unwrap();
        wired(node.add(&pod).await);
        node.del("c1").await;
        node.is_clean().await;
    });
}
