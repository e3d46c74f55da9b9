//! Pods' way to the outside, beside what kube-proxy writes, and the check that they
//! send from their own addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use viaduct_e2e::{eventually, viaductctl};
use viaduct_lab::{Echo, Lab, LabOptions, Node, Pod, command, in_lab, netns};

/// A host beyond the underlay, which knows no way to pods.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
/// The same host by an address that the tests exempt.
const EXEMPT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const PORT: u16 = 8080;

/// Makes the host, with a router between it and the underlay.
fn outside() -> Result<PathBuf> {
    let path = netns::add("outside")?;
    command::ip_batch(
        "link add to-outside type veth peer name eth0 netns outside\n\
         addr add 198.51.100.1/24 dev to-outside\n\
         link set to-outside up\n\
         route add 203.0.113.0/24 dev to-outside\n",
    )?;
    netns::within(&path, || {
        command::ip_batch(
            "addr add 198.51.100.9/24 dev eth0\n\
             addr add 203.0.113.9/32 dev eth0\n\
             link set eth0 up\n\
             route add default via 198.51.100.1\n",
        )
    })?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("net.ipv4.ip_forward")?;
    Ok(path)
}

/// Gives the router a way to a pod, so that the pod's own address works outside.
fn route_to(pod: &Pod, node: &Node) -> Result<()> {
    let route = format!("route replace {}/32 via {}\n", pod.ip, node.address());
    command::ip_batch(&route)
}

/// The address that a server at `at` sees when `client` connects to `to`.
fn seen_by(server: &Path, at: IpAddr, client: &Path, to: SocketAddr) -> Result<IpAddr> {
    let listener = netns::within(server, || {
        let any: IpAddr = Ipv4Addr::UNSPECIFIED.into();
        let at = if at.is_unspecified() { any } else { at };
        Ok(TcpListener::bind(SocketAddr::new(at, PORT))?)
    })?;
    let stream = netns::within(client, || {
        TcpStream::connect_timeout(&to, Duration::from_secs(2))
            .with_context(|| format!("connecting to {to}"))
    })?;
    let (_, peer) = listener.accept()?;
    drop(stream);
    Ok(peer.ip())
}

/// The same, where the server is at the address that is connected to.
fn seen(server: &Path, at: impl Into<IpAddr>, client: &Path) -> Result<IpAddr> {
    let at = at.into();
    seen_by(server, at, client, SocketAddr::new(at, PORT))
}

fn sees(server: &Path, at: impl Into<IpAddr>, client: &Path, wanted: IpAddr) -> Result<()> {
    let at = at.into();
    let is = seen(server, at, client)?;
    ensure!(is == wanted, "at {at} is seen {is}, not {wanted}");
    Ok(())
}

fn two_pods(lab: &Lab) -> Result<(Pod, Pod)> {
    let mut pods = lab.pods().into_iter();
    let both = pods.next().zip(pods.next());
    both.context("two pods")
}

fn options(args: &[&str]) -> LabOptions {
    LabOptions {
        agent_args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        ..LabOptions::default()
    }
}

fn subnet_env(node: &Node) -> Result<String> {
    let path = node.run_dir().join("subnet.env");
    eventually(|| std::fs::read_to_string(&path).with_context(|| path.display().to_string()))
}

#[test]
fn the_outside_sees_the_nodes_address_and_pods_and_exempt_hosts_see_the_pods() {
    let args = ["--no-masquerade-to", "203.0.113.0/24,192.0.2.0/24"];
    in_lab(options(&args), |lab| {
        let outside = outside()?;
        let (n1, n2) = (lab.node("n1")?, lab.node("n2")?);
        let (here, there) = two_pods(lab)?;
        let masqueraded = || sees(&outside, OUTSIDE, &here.netns, n1.address().into());
        masqueraded()?;
        sees(&there.netns, there.ip, &here.netns, here.ip)?;
        let neighbour = n1.add_pod("p2")?;
        sees(&neighbour.netns, neighbour.ip, &here.netns, here.ip)?;
        // A node's own packets are nobody's business.
        let overlay = seen(&there.netns, there.ip, n1.netns())?;
        ensure!(
            n1.ip(&format!("-4 addr show dev {}", lab.options().way()))?
                .contains(&format!("inet {overlay}/")),
            "the node is seen as {overlay}"
        );
        sees(&outside, OUTSIDE, n1.netns(), n1.address().into())?;
        // Other nodes are outside: their networks may refuse pods' addresses.
        sees(n2.netns(), n2.address(), &here.netns, n1.address().into())?;
        route_to(&here, &n1)?;
        sees(&outside, EXEMPT, &here.netns, here.ip)?;
        masqueraded()?;
        ensure!(
            subnet_env(&n1)?.contains("FLANNEL_IPMASQ=true\n"),
            "{}",
            subnet_env(&n1)?
        );
        // What somebody flushes is back; what else there was is theirs to restore.
        n1.run("nft", &["flush", "ruleset"])?;
        eventually(|| {
            ensure!(
                n1.metric("viaduct_egress_repairs_total")? >= 1.0,
                "no repair"
            );
            masqueraded()
        })?;
        n1.await_ready(Duration::from_secs(10))
    });
}

#[test]
fn a_node_that_is_told_not_to_masquerade_says_so_and_does_not() {
    in_lab(options(&["--masquerade=false"]), |lab| {
        let outside = outside()?;
        let n1 = lab.node("n1")?;
        let (here, there) = two_pods(lab)?;
        // Whoever routes pods' addresses himself sees to it that nodes forward them.
        n1.run("sysctl", &["-qw", "net.ipv4.ip_forward=1"])?;
        route_to(&here, &n1)?;
        sees(&outside, OUTSIDE, &here.netns, here.ip)?;
        sees(&there.netns, there.ip, &here.netns, here.ip)?;
        ensure!(
            subnet_env(&n1)?.contains("FLANNEL_IPMASQ=false\n"),
            "{}",
            subnet_env(&n1)?
        );
        Ok(())
    });
}

#[test]
fn nodes_see_pods_own_addresses_where_the_user_wants_it() {
    in_lab(options(&["--masquerade-to-nodes=false"]), |lab| {
        let (n1, n2) = (lab.node("n1")?, lab.node("n2")?);
        let (here, _) = two_pods(lab)?;
        eventually(|| sees(n2.netns(), n2.address(), &here.netns, here.ip))?;
        let outside = outside()?;
        sees(&outside, OUTSIDE, &here.netns, n1.address().into())
    });
}

/// The same node holds blocks of both pools.
#[test]
fn pods_of_a_pool_without_nat_outgoing_keep_their_addresses_and_others_do_not() {
    let small = LabOptions {
        nodes: 1,
        pool: Some("10.64.0.0/29".to_owned()),
        controller_args: vec!["--block-size".into(), "29".into()],
        ..LabOptions::default()
    };
    in_lab(small, |lab| {
        let outside = outside()?;
        let n1 = lab.node("n1")?;
        let create = "pools create plain --cidr 10.65.0.0/24 --no-nat-outgoing";
        let create: Vec<&str> = create.split(' ').collect();
        viaductctl(lab, &create)?.worked()?;
        let natted = lab.pods().into_iter().next().context("a pod")?;
        let mut plain = None;
        for n in 2..12 {
            let pod = eventually(|| n1.add_pod(&format!("p{n}")))?;
            if pod.ip.to_string().starts_with("10.65.") {
                plain = Some(pod);
                break;
            }
        }
        let plain = plain.context("no pod in the second pool")?;
        for pod in [&natted, &plain] {
            route_to(pod, &n1)?;
        }
        eventually(|| sees(&outside, OUTSIDE, &natted.netns, n1.address().into()))?;
        eventually(|| sees(&outside, OUTSIDE, &plain.netns, plain.ip))?;
        // Both are pods to each other, once the table knows the new pool.
        eventually(|| sees(&plain.netns, plain.ip, &natted.netns, natted.ip))?;
        sees(&natted.netns, natted.ip, &plain.netns, plain.ip)
    });
}

/// Nothing forwards a pod's own multicast without a multicast router; but what has an
/// address of a pool for its source is judged alike wherever it was sent.
#[test]
fn multicast_from_an_address_of_a_pool_keeps_it() {
    in_lab(LabOptions::default(), |lab| {
        let n1 = lab.node("n1")?;
        let (_, there) = two_pods(lab)?;
        let overlay = seen(&there.netns, there.ip, n1.netns())?;
        n1.ip("route add 239.0.0.0/8 dev eth0")?;
        // After all translation.
        let leaves = |to: &str, source: IpAddr| {
            format!("ip daddr {to} ip saddr {source} counter comment \"{to} {source}\"; ")
        };
        let rules: String = ["239.1.2.3", "198.51.100.9"]
            .iter()
            .flat_map(|to| [leaves(to, overlay), leaves(to, n1.address().into())])
            .collect();
        let table = format!(
            "table ip counts {{ chain c {{ type filter hook postrouting priority 300; {rules} }}; }}"
        );
        n1.run("nft", &[&table])?;
        netns::within(n1.netns(), || {
            let socket = UdpSocket::bind((overlay, 0))?;
            for to in ["239.1.2.3", "198.51.100.9"] {
                socket.send_to(b"?", (to, PORT))?;
            }
            Ok(())
        })?;
        let counted = n1.run("nft", &["list", "table", "ip", "counts"])?;
        let is = |to: &str, source: IpAddr, wanted: bool| -> Result<()> {
            let comment = format!("\"{to} {source}\"");
            let line = counted.lines().find(|line| line.contains(&comment));
            let line = line.with_context(|| counted.clone())?;
            ensure!(line.contains("packets 1") == wanted, "{line}");
            Ok(())
        };
        is("239.1.2.3", overlay, true)?;
        is("198.51.100.9", overlay, false)?;
        is("198.51.100.9", n1.address().into(), true)
    });
}

/// The table but for what counts and numbers.
fn table(node: &Node) -> Result<String> {
    node.run("nft", &["-s", "list", "table", "inet", "viaduct"])
}

#[test]
fn whatever_is_done_to_the_table_is_undone_at_once() {
    in_lab(LabOptions::default(), |lab| {
        let outside = outside()?;
        let n1 = lab.node("n1")?;
        let (here, _) = two_pods(lab)?;
        let right = table(&n1)?;
        for damage in [
            "flush ruleset",
            "delete table inet viaduct",
            "flush table inet viaduct",
            "insert rule inet viaduct egress accept",
        ] {
            let repairs = || n1.metric("viaduct_egress_repairs_total");
            let before = repairs()?;
            n1.run("nft", &[damage])?;
            eventually(|| {
                ensure!(repairs()? > before, "no repair of {damage}");
                let now = table(&n1)?;
                ensure!(now == right, "{damage}: {right} is {now}");
                Ok(())
            })?;
            sees(&outside, OUTSIDE, &here.netns, n1.address().into())?;
            n1.await_ready(Duration::from_secs(10))?;
        }
        Ok(())
    });
}

#[test]
fn a_pod_that_sends_from_a_foreign_address_is_dropped_and_counted() {
    in_lab(LabOptions::default(), |lab| {
        let n1 = lab.node("n1")?;
        let (here, there) = two_pods(lab)?;
        let spoofed = || n1.metric("viaduct_spoofed_packets_total");
        ensure!(spoofed()? < 0.5, "counted before anything was sent");
        for (n, all) in ["0", "1", "2"].into_iter().enumerate() {
            // Whatever the host has chosen: the kernel takes the greater of the two.
            let all = format!("net.ipv4.conf.all.rp_filter={all}");
            n1.run("sysctl", &["-qw", &all])?;
            here.ping(there.ip, Echo::default())?;
            for foreign in ["10.64.3.3", "192.0.2.1", &there.ip.to_string()] {
                let address = format!("{foreign}/32");
                here.exec("ip", &["addr", "add", &address, "dev", "eth0"])?;
                let to = n1.address().to_string();
                let ping = ["-c", "2", "-i", "0.2", "-W", "1", "-I", foreign, &to];
                ensure!(
                    here.exec("ping", &ping).is_err(),
                    "{foreign} gets an answer"
                );
                here.exec("ip", &["addr", "del", &address, "dev", "eth0"])?;
            }
            let (count, sent) = (spoofed()?, 6.0 * (n as f64 + 1.0));
            ensure!(
                (count - sent).abs() < 0.5,
                "{all}: {count} of {sent} packets are counted"
            );
        }
        // It is the kernel's own check: no packet is judged by rules as well.
        let chains = n1.run("nft", &["list", "chains"])?;
        ensure!(!chains.contains("hook ingress"), "{chains}");
        here.ping(there.ip, Echo::default())
    });
}

/// What kube-proxy writes in its iptables mode: services at 10.96.0.0/16 and a node
/// port, for one pod each and for a host outside.
fn kube_proxy(node: &Node, far: &Pod, own: &Pod) -> Result<()> {
    let service = |name: &str, to: &str, target: IpAddr| {
        format!(
            "-A KUBE-SERVICES {to} -j KUBE-SVC-{name}\n\
             -A KUBE-SVC-{name} ! -s 10.64.0.0/16 -j KUBE-MARK-MASQ\n\
             -A KUBE-SVC-{name} -j KUBE-SEP-{name}\n\
             -A KUBE-SEP-{name} -s {target}/32 -j KUBE-MARK-MASQ\n\
             -A KUBE-SEP-{name} -p tcp -j DNAT --to-destination {target}:{PORT}\n"
        )
    };
    let names = ["FAR", "OWN", "OUT", "PORT"];
    let chains: String = names
        .iter()
        .map(|name| format!(":KUBE-SVC-{name} - [0:0]\n:KUBE-SEP-{name} - [0:0]\n"))
        .collect();
    let address = node.address();
    let rules = format!(
        "*nat\n\
         :KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
         {chains}\
         -A PREROUTING -j KUBE-SERVICES\n\
         -A OUTPUT -j KUBE-SERVICES\n\
         -A POSTROUTING -j KUBE-POSTROUTING\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         {}{}{}{}COMMIT\n",
        service("FAR", "-d 10.96.0.1/32 -p tcp --dport 80", far.ip),
        service("OWN", "-d 10.96.0.2/32 -p tcp --dport 80", own.ip),
        service("OUT", "-d 10.96.0.3/32 -p tcp --dport 80", OUTSIDE.into()),
        service(
            "PORT",
            &format!("-d {address}/32 -p tcp --dport 30080"),
            far.ip
        ),
    );
    let script = format!("iptables-nft-restore <<'END'\n{rules}END\n");
    node.run("sh", &["-c", &script]).map(drop)
}

#[test]
fn services_in_the_manner_of_kube_proxy_work_beside_it() {
    in_lab(LabOptions::default(), |lab| {
        let outside = outside()?;
        let n1 = lab.node("n1")?;
        let (here, there) = two_pods(lab)?;
        let service = |n: u8| SocketAddr::from(([10, 96, 0, n], 80));
        let overlay = seen(&there.netns, there.ip, n1.netns())?;
        let is_one_of_n1 = |is: IpAddr| is == overlay || is == IpAddr::from(n1.address());
        let check = || -> Result<()> {
            let is = seen_by(&there.netns, there.ip, &here.netns, service(1))?;
            ensure!(
                is == here.ip,
                "a service's pod sees a pod of another node as {is}"
            );
            let is = seen_by(&here.netns, here.ip, &here.netns, service(2))?;
            ensure!(
                is_one_of_n1(is),
                "a pod sees itself through its service as {is}"
            );
            let is = seen_by(&there.netns, there.ip, n1.netns(), service(1))?;
            ensure!(is_one_of_n1(is), "a service's pod sees a node as {is}");
            let is = seen_by(&outside, OUTSIDE.into(), &here.netns, service(3))?;
            ensure!(
                is == IpAddr::from(n1.address()),
                "a service's host outside sees {is}"
            );
            let port = SocketAddr::from((n1.address(), 30080));
            let is = seen_by(&there.netns, there.ip, &outside, port)?;
            ensure!(is == overlay, "a node port's pod sees the outside as {is}");
            sees(&outside, OUTSIDE, &here.netns, n1.address().into())
        };
        kube_proxy(&n1, &there, &here)?;
        check().context("kube-proxy's rules came after ours")?;
        n1.run("nft", &["delete", "table", "inet", "viaduct"])?;
        eventually(|| {
            ensure!(
                n1.metric("viaduct_egress_repairs_total")? >= 1.0,
                "no repair"
            );
            Ok(())
        })?;
        check().context("kube-proxy's rules came before ours")?;
        let theirs = n1.run("iptables-nft", &["-t", "nat", "-S"])?;
        ensure!(theirs.contains("KUBE-SEP-FAR"), "{theirs}");
        n1.await_ready(Duration::from_secs(10))
    });
}
