//! That a pod sends from its own address only: by the kernel's check, with the
//! reconciler that keeps it at work.

use viaduct_agent::dataplane::endpoints::HOST_END;
use viaduct_agent::spoofed::Spoofed;
use viaduct_model::MacAddr;

use crate::scene::{self, Scene, in_namespace, ok, run};
use crate::testing::endpoint;

const OWN: &str = "10.64.0.5";

/// An address of the node's own block that no pod has, one of another node's, and one of
/// the outside.
const FOREIGN: [&str; 3] = ["10.64.0.77", "10.64.1.9", "192.0.2.1"];

/// A pod in a namespace of its own; returns its device.
fn pod(scene: &Scene) -> String {
    ok("mount -t tmpfs run /run; ip netns add pod");
    scene.pod("one", OWN);
    let endpoint = endpoint("one", OWN, true);
    ok(&format!(
        "ip link set eth-one netns pod; ip -n pod link set eth-one up address {}",
        endpoint.pod_mac
    ));
    for address in [OWN].iter().chain(&FOREIGN) {
        ok(&format!("ip -n pod addr add {address}/32 dev eth-one"));
    }
    ok(&format!(
        "ip -n pod neigh add 169.254.1.1 lladdr {} dev eth-one nud permanent; \
         ip -n pod route add default via 169.254.1.1 dev eth-one onlink",
        MacAddr::HOST_END
    ));
    scene.settled();
    endpoint.link
}

/// Sends two packets to the node from this address.
fn send(from: &str) -> (bool, String) {
    run(&format!(
        "ip netns exec pod ping -c 2 -i 0.05 -W 0.2 -I {from} 192.168.64.1"
    ))
}

/// How many packets of foreign sources the node has taken for its own.
fn believed() -> u64 {
    let listed = run("PATH=$PATH:/usr/sbin nft list counter inet probe believed").1;
    let mut words = listed
        .split_whitespace()
        .skip_while(|word| *word != "packets");
    let count = words.nth(1).expect("a count");
    count.parse().expect("a number")
}

/// Sends from each foreign address, and sees that it is dropped and counted.
fn held_to_its_address(what: &str) {
    let (answered, text) = send(OWN);
    assert!(answered, "{what}: {text}");
    for from in FOREIGN {
        let (dropped, before) = (Spoofed::from_now(), believed());
        send(from);
        assert_eq!(believed(), before, "{what}: {from} was believed");
        assert_eq!(dropped.count(), 2, "{what}: {from} was not counted");
    }
}

#[test]
fn a_packet_from_a_foreign_address_is_dropped_and_counted_whatever_rp_filter_says() {
    in_namespace(|| {
        let scene = Scene::start(scene::cluster());
        let link = pod(&scene);
        ok(&format!(
            "PATH=$PATH:/usr/sbin nft 'add table inet probe; add counter inet probe believed; \
             add chain inet probe c {{ type filter hook input priority 0; }}; \
             add rule inet probe c iifname {link} ip saddr != {OWN} counter name believed'"
        ));
        assert_eq!(HOST_END.rp_filter, 1);
        // The host's own setting, also changed at work: the kernel takes the greater.
        for all in [0, 1, 2, 0, 2, 1, 0] {
            ok(&format!("sysctl -qw net.ipv4.conf.all.rp_filter={all}"));
            held_to_its_address(&format!("all.rp_filter={all}"));
        }
        // What would open it is undone.
        ok(&format!("sysctl -qw net.ipv4.conf.{link}.rp_filter=0"));
        scene.settled();
        held_to_its_address("switched off");
        ok("sysctl -qw net.ipv4.conf.all.rp_filter=2");
        ok(&format!("ip addr add 198.18.0.1/32 dev {link}"));
        scene.settled();
        held_to_its_address("an address on its device");
        // What the `bandwidth` plugin takes aside comes back as if from the device.
        ok(&format!(
            "ip link add ifb0 type ifb; ip link set ifb0 up; tc qdisc add dev {link} ingress; \
             tc filter add dev {link} parent ffff: protocol all u32 match u32 0 0 \
             action mirred egress redirect dev ifb0"
        ));
        held_to_its_address("shaped");
        // And this test hears what nobody checks.
        drop(scene);
        ok(&format!(
            "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{link}.rp_filter=0"
        ));
        send(FOREIGN[0]);
        assert_eq!(believed(), 2);
    });
}
