//! What somebody else damages is healed; what is not ours is left alone.

use anyhow::{Context, Result, ensure};
use viaduct_e2e::{eventually, everybody_pings, leaks, ours};
use viaduct_lab::{Lab, LabOptions, Node, Signal, in_lab};

/// The part of a line of [`ours`] after `key`.
fn after<'a>(lines: &'a [String], start: &str, key: &str) -> Result<&'a str> {
    lines
        .iter()
        .filter(|line| line.starts_with(start))
        .find_map(|line| line.split_once(key)?.1.split(' ').next())
        .with_context(|| format!("no {start} with {key} in {lines:#?}"))
}

/// Does each damage to node `n1` by a shell, and waits until the kernel is again as
/// it was. The agent is halted meanwhile, so that the damage can be seen to be one.
fn all_healed(lab: &Lab, damages: &[String]) -> Result<()> {
    let node = lab.node("n1")?;
    let before = ours(&node)?;
    for damage in damages {
        node.agent().signal(Signal::SIGSTOP)?;
        let damaged = node.run("sh", &["-ec", damage]).context("damaging");
        let now = ours(&node);
        node.agent().signal(Signal::SIGCONT)?;
        damaged?;
        ensure!(now? != before, "no damage: {damage}");
        eventually(|| {
            let now = ours(&node)?;
            ensure!(now == before, "{before:#?} is {now:#?}");
            let ready = node.readyz()?;
            ensure!(ready.body.trim() == "ok", "{ready:?}");
            Ok(())
        })
        .with_context(|| format!("not healed: {damage}"))?;
        everybody_pings(&lab.pods()).with_context(|| format!("after {damage}"))?;
    }
    ensure!(repairs(&node)? > 0.5, "no repair was counted");
    lab.nodes().iter().try_for_each(|node| leaks(node))
}

fn repairs(node: &Node) -> Result<f64> {
    node.metric("viaduct_dataplane_repairs_total ")
}

#[test]
fn damage_to_routes_neighbours_and_fdb_entries_is_healed() {
    in_lab(LabOptions::default(), |lab| {
        let lines = ours(&*lab.node("n1")?)?;
        let next_hop = after(&lines, "route 10.", "via ")?.to_owned();
        let blackhole = after(&lines, "route", "blackhole ")?.to_owned();
        let mac = after(&lines, "fdb", "fdb ")?.to_owned();
        let (pod, link) = {
            let pod = lab.node("n1")?.pods().first().context("no pod")?.ip;
            let link = after(&lines, &format!("route {pod} "), "dev ")?.to_owned();
            (pod, link)
        };
        all_healed(
            lab,
            &[
                format!("ip route del {next_hop}/26"),
                format!(
                    "ip route replace {next_hop}/26 via 10.64.99.0 dev via.vx4 onlink proto 87"
                ),
                format!("ip route del blackhole {blackhole}"),
                format!("ip neigh del {next_hop} dev via.vx4"),
                format!(
                    "ip neigh replace {next_hop} lladdr 02:00:00:00:00:01 dev via.vx4 nud permanent"
                ),
                format!("ip neigh replace {next_hop} lladdr {mac} dev via.vx4 nud stale"),
                format!("bridge fdb del {mac} dev via.vx4"),
                format!("bridge fdb replace {mac} dev via.vx4 dst 172.29.0.99"),
                "bridge fdb add 02:00:00:00:00:01 dev via.vx4 dst 172.29.0.99".to_owned(),
                format!("ip route del {pod}"),
                format!("ip route replace {pod} dev eth0 proto 87"),
                format!("ip neigh del {pod} dev {link}"),
                format!("ip neigh replace {pod} lladdr 02:00:00:00:00:01 dev {link} nud permanent"),
                "ip route add 10.64.200.0/26 via 10.64.200.0 dev via.vx4 onlink proto 87"
                    .to_owned(),
            ],
        )
    });
}

#[test]
fn damage_to_links_addresses_and_settings_is_healed() {
    in_lab(LabOptions::default(), |lab| {
        let node = lab.node("n1")?;
        let lines = ours(&node)?;
        let own = after(&lines, "address via.vx4", "inet ")?.to_owned();
        let pod = node.pods().first().context("no pod")?.ip;
        let link = after(&lines, &format!("route {pod} "), "dev ")?.to_owned();
        let set = |link: &str, key: &str, value: &str| {
            format!("echo {value} > /proc/sys/net/ipv4/conf/{link}/{key}")
        };
        all_healed(
            lab,
            &[
                "ip link set via.vx4 down".to_owned(),
                "ip link del via.vx4".to_owned(),
                "ip link set via.vx4 mtu 1300".to_owned(),
                "ip link set via.vx4 address 02:00:00:00:00:01".to_owned(),
                format!("ip addr del {own} dev via.vx4"),
                "ip addr add 10.64.200.1/32 dev via.vx4".to_owned(),
                // Of the right name, but another tunnel.
                "ip link del via.vx4 && ip link add via.vx4 type vxlan id 77 dstport 4789 dev eth0"
                    .to_owned(),
                set("via.vx4", "rp_filter", "1"),
                set("via.vx4", "forwarding", "0"),
                set(&link, "rp_filter", "0"),
                set(&link, "forwarding", "0"),
                // Switches it on and off again for every link.
                format!(
                    "{}; {}",
                    set("all", "forwarding", "1"),
                    set("all", "forwarding", "0")
                ),
                format!("ip link set {link} down"),
                format!("ip link set {link} mtu 1300"),
                "ip link add via0123456789ab type veth peer name leftover".to_owned(),
                // Everything at once, again and again.
                format!(
                    "for n in 1 2 3 4 5; do ip route flush proto 87; ip neigh flush dev {link} \
                     nud permanent; ip link set via.vx4 down; done; ip link del via.vx4"
                ),
            ],
        )
    });
}

#[test]
fn foreign_routes_and_links_stay_while_ours_are_healed() {
    in_lab(LabOptions::default(), |lab| {
        let node = lab.node("n1")?;
        node.ip("route add 198.18.7.0/24 via 172.29.0.1 proto static")?;
        node.ip("route add 198.18.8.0/24 via 172.29.0.1 table 77 proto 87")?;
        node.ip("link add foreign type veth peer name foreign-peer")?;
        all_healed(
            lab,
            &[
                "ip link del via.vx4".to_owned(),
                "ip route flush proto 87".to_owned(),
            ],
        )?;
        for (list, part) in [
            ("route show", "198.18.7.0/24"),
            ("route show table 77", "198.18.8.0/24"),
            ("link show", "foreign-peer"),
        ] {
            ensure!(node.ip(list)?.contains(part), "{part} is gone");
        }
        Ok(())
    });
}
