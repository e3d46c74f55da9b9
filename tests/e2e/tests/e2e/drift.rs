//! What somebody else damages is healed; what is not ours is left alone.

use anyhow::{Context, Result, ensure};
use viaduct_e2e::{eventually, everybody_pings, leaks, ours};
use viaduct_lab::{Backend, Lab, LabOptions, Node, Signal, in_lab};

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
        let way = lab.options().way();
        let (block, next_hop) = lines
            .iter()
            .find_map(|line| line.strip_prefix("route ")?.split_once(" via "))
            .and_then(|(block, rest)| Some((block, rest.split(' ').next()?)))
            .with_context(|| format!("no route to a peer's block in {lines:#?}"))?;
        let blackhole = after(&lines, "route", "blackhole ")?.to_owned();
        let (pod, link) = {
            let pod = lab.node("n1")?.pods().first().context("no pod")?.ip;
            let link = after(&lines, &format!("route {pod} "), "dev ")?.to_owned();
            (pod, link)
        };
        let mut damages = vec![
            format!("ip route del {block}"),
            format!("ip route replace {block} via 172.29.0.99 dev {way} onlink proto 87"),
            format!("ip route replace {block} via 172.29.0.1 dev eth0 proto 87"),
            format!("ip route del blackhole {blackhole}"),
            format!("ip route del {pod}"),
            format!("ip route replace {pod} dev eth0 proto 87"),
            format!("ip neigh del {pod} dev {link}"),
            format!("ip neigh replace {pod} lladdr 02:00:00:00:00:01 dev {link} nud permanent"),
            format!("ip route add 10.64.200.0/26 via 172.29.0.99 dev {way} onlink proto 87"),
        ];
        if lab.options().backend == Backend::Vxlan {
            let mac = after(&lines, "fdb", "fdb ")?;
            damages.extend([
                format!("ip neigh del {next_hop} dev {way}"),
                format!(
                    "ip neigh replace {next_hop} lladdr 02:00:00:00:00:01 dev {way} nud permanent"
                ),
                format!("ip neigh replace {next_hop} lladdr {mac} dev {way} nud stale"),
                format!("bridge fdb del {mac} dev {way}"),
                format!("bridge fdb replace {mac} dev {way} dst 172.29.0.99"),
                format!("bridge fdb add 02:00:00:00:00:01 dev {way} dst 172.29.0.99"),
            ]);
        }
        all_healed(lab, &damages)
    });
}

/// `echo value > setting` of a link.
fn set(link: &str, key: &str, value: &str) -> String {
    format!("echo {value} > /proc/sys/net/ipv4/conf/{link}/{key}")
}

/// Everything that can be done to a tunnel.
fn damages_to_tunnel(backend: Backend, tunnel: &str, own: &str) -> Vec<String> {
    let mut damages = vec![
        format!("ip link set {tunnel} down"),
        format!("ip link del {tunnel}"),
        format!("ip link set {tunnel} mtu 1300"),
        format!("ip addr del {own} dev {tunnel}"),
        format!("ip addr add 10.64.200.1/32 dev {tunnel}"),
        set(tunnel, "rp_filter", "1"),
        set(tunnel, "forwarding", "0"),
    ];
    // Another address of its own, and another tunnel of the right name.
    damages.extend(match backend {
        Backend::Vxlan => vec![
            format!("ip link set {tunnel} address 02:00:00:00:00:01"),
            format!(
                "ip link del {tunnel} && \
                 ip link add {tunnel} type vxlan id 77 dstport 4789 dev eth0"
            ),
        ],
        Backend::Ipip => vec![
            format!("ip link set {tunnel} type ipip local 172.29.0.98 remote any"),
            format!(
                "ip link del {tunnel} && ip link add {tunnel} type ipip local 172.29.0.11 \
                 remote 172.29.0.99"
            ),
        ],
        Backend::HostGw => Vec::new(),
    });
    damages
}

#[test]
fn damage_to_links_addresses_and_settings_is_healed() {
    in_lab(LabOptions::default(), |lab| {
        let node = lab.node("n1")?;
        let lines = ours(&node)?;
        let pod = node.pods().first().context("no pod")?.ip;
        let link = after(&lines, &format!("route {pod} "), "dev ")?.to_owned();
        let backend = lab.options().backend;
        let mut damages = vec![
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
        ];
        // Everything at once, again and again.
        let mut all = format!("ip route flush proto 87; ip neigh flush dev {link} nud permanent; ");
        let mut last = String::new();
        if let Some(tunnel) = backend.tunnel() {
            let own = after(&lines, &format!("address {tunnel}"), "inet ")?;
            damages.extend(damages_to_tunnel(backend, tunnel, own));
            all.push_str(&format!("ip link set {tunnel} down; "));
            last = format!("; ip link del {tunnel}");
        }
        damages.push(format!("for n in 1 2 3 4 5; do {all}done{last}"));
        all_healed(lab, &damages)
    });
}

#[test]
fn foreign_routes_and_links_stay_while_ours_are_healed() {
    in_lab(LabOptions::default(), |lab| {
        let node = lab.node("n1")?;
        node.ip("route add 198.18.7.0/24 via 172.29.0.1 proto static")?;
        node.ip("route add 198.18.8.0/24 via 172.29.0.1 table 77 proto 87")?;
        node.ip("link add foreign type veth peer name foreign-peer")?;
        let tunnel = lab.options().backend.tunnel();
        let mut damages = vec!["ip route flush proto 87".to_owned()];
        damages.extend(tunnel.map(|tunnel| format!("ip link del {tunnel}")));
        all_healed(lab, &damages)?;
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
