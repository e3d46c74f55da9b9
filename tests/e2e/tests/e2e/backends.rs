//! Each backend carries, and says whom it cannot reach; a cluster changes from one to
//! another and back.

use anyhow::{Context, Result, ensure};
use viaduct_e2e::{
    Losses, Pinging, backends_of_the_kernel, eventually, everybody_pings, leaks, ours, viaductctl,
};
use viaduct_lab::{Backend, Echo, Lab, LabOptions, Matrix, Node, Signal, in_lab};

fn with(backend: Backend) -> LabOptions {
    LabOptions {
        backend,
        ..LabOptions::default()
    }
}

fn direct_routing() -> LabOptions {
    LabOptions {
        direct_routing: true,
        ..LabOptions::default()
    }
}

/// Everybody reaches everybody, in the way that the backend is to carry it.
fn proved(lab: &Lab) -> Result<()> {
    let matrix = Matrix::run(lab)?;
    let failures = matrix.failures();
    ensure!(failures.is_empty(), "{failures:#?}");
    lab.nodes().iter().try_for_each(|node| leaks(node))
}

#[test]
fn host_gw_carries_pods_packets_as_they_are_and_with_the_underlays_whole_mtu() {
    in_lab(with(Backend::HostGw), |lab| {
        proved(lab)?;
        let pods = lab.pods();
        let mtu = pods.first().context("no pod")?.mtu()?;
        ensure!(mtu == 1500, "{mtu}");
        for node in lab.nodes() {
            let links = node.ip("-o link show")?;
            ensure!(!links.contains("via."), "a tunnel was made: {links}");
        }
        Ok(())
    });
}

#[test]
fn with_direct_routing_nodes_on_one_network_need_no_tunnel() {
    in_lab(direct_routing(), |lab| {
        proved(lab)?;
        Ok(())
    });
}

/// Restarts the agent of a node with another backend.
fn change(node: &Node, backend: &str) -> Result<()> {
    let mut args = node.agent().args();
    let at = args
        .iter()
        .position(|a| a == "--backend")
        .context("no --backend")?;
    args[at + 1] = backend.to_owned();
    node.kill_agent(Signal::SIGTERM)?;
    node.agent().set_args(args);
    node.start_agent()
}

#[test]
fn a_cluster_changes_its_backend_node_by_node_and_back() {
    let options = LabOptions {
        nodes: 3,
        ..with(Backend::Vxlan)
    };
    in_lab(options, |lab| {
        let pods = lab.pods();
        // To each that the kernel has, and back from it.
        let kernel = backends_of_the_kernel();
        let others = kernel.iter().filter(|backend| **backend != Backend::Vxlan);
        for backend in others.flat_map(|other| [*other, Backend::Vxlan]) {
            let name = backend.name();
            let streams =
                [(0, 1), (1, 2), (2, 0)].map(|(from, to)| Pinging::start(&pods[from], &pods[to]));
            let streams = streams.into_iter().collect::<Result<Vec<_>>>()?;
            let nodes = lab.nodes();
            for (done, node) in nodes.iter().enumerate() {
                change(node, name)?;
                node.await_ready(viaduct_e2e::PATIENCE)?;
                if done == 0 {
                    refused_by_name(lab, node, nodes[1].name())?;
                }
            }
            eventually(|| everybody_pings(&pods))?;
            for (stream, pair) in streams.into_iter().zip(["1-2", "2-3", "3-1"]) {
                let Losses { sent, lost } = stream.stop()?;
                println!(
                    "to {name}, nodes {pair}: {} of {sent} packets lost, 10 ms each",
                    lost.len()
                );
            }
            for node in &nodes {
                let kernel = ours(node)?.join("\n");
                for tunnel in [Backend::Vxlan, Backend::Ipip]
                    .into_iter()
                    .filter_map(Backend::tunnel)
                {
                    let right = kernel.contains(tunnel) == (backend.tunnel() == Some(tunnel));
                    ensure!(right, "{name} on {}: {kernel}", node.name());
                }
                eventually(|| {
                    let ready = node.readyz()?;
                    ensure!(ready.body.trim() == "ok", "{ready:?}");
                    Ok(())
                })?;
            }
        }
        Ok(())
    });
}

/// Node and peer run different backends: each says so of the other, and has no route.
fn refused_by_name(lab: &Lab, node: &Node, peer: &str) -> Result<()> {
    eventually(|| {
        let ready = node.readyz()?;
        let told = format!("node \"{peer}\" is not routed: its backend is");
        ensure!(ready.body.contains(&told), "{ready:?}");
        let status = viaductctl(lab, &["status"])?.worked()?;
        let told = format!("node \"{peer}\": PeersReachable is False (Refused)");
        ensure!(status.contains(&told), "{status}");
        Ok(())
    })
}

#[test]
fn a_peer_that_is_not_adjacent_is_named_everywhere_and_routed_again_when_it_is() {
    in_lab(with(Backend::HostGw), |lab| {
        let (near, far) = (lab.node("n1")?, lab.node("n2")?);
        let address = far.address();
        let route = || -> Result<bool> {
            let routes = near.ip("route show proto 87")?;
            Ok(routes.contains(&format!("via {address} ")))
        };
        ensure!(route()?, "no route at first");
        // The way to n2 now leads over a router, which knows nothing of pods.
        near.ip(&format!("route add {address}/32 via 172.29.0.1 dev eth0"))?;
        eventually(|| {
            ensure!(!route()?, "the route is still there");
            let ready = near.readyz()?;
            ensure!(ready.body.starts_with("ok"), "{ready:?}");
            ensure!(
                ready.body.contains("node \"n2\" is not adjacent"),
                "{ready:?}"
            );
            let count = near.metric("viaduct_peers_not_adjacent ")?;
            ensure!((count - 1.0).abs() < 0.5, "{count}");
            let status = viaductctl(lab, &["status"])?.worked()?;
            let told = "node \"n1\": PeersReachable is False (NotAdjacent): node \"n2\"";
            ensure!(status.contains(told), "{status}");
            Ok(())
        })?;
        near.ip(&format!("route del {address}/32"))?;
        eventually(|| {
            ensure!(route()?, "the route is not back");
            everybody_pings(&lab.pods())?;
            let count = near.metric("viaduct_peers_not_adjacent ")?;
            ensure!(count.abs() < 0.5, "{count}");
            Ok(())
        })
    });
}

#[test]
fn direct_routing_switches_to_the_tunnel_and_back_while_packets_flow() {
    in_lab(direct_routing(), |lab| {
        let tunnel = lab.options().backend.tunnel().context("no tunnel")?;
        let pods = lab.pods();
        let (n1, n2) = (lab.node("n1")?, lab.node("n2")?);
        let stream = Pinging::start(&pods[0], &pods[1])?;
        let device = |node: &Node, peer: &Node| -> Result<String> {
            let routes = node.ip("route show proto 87")?;
            let direct = routes.contains(&format!("via {} dev eth0", peer.address()));
            Ok(if direct { "eth0" } else { tunnel }.to_owned())
        };
        let both = |wanted: &str| {
            eventually(|| {
                for (node, peer) in [(&n1, &n2), (&n2, &n1)] {
                    let is = device(node, peer)?;
                    ensure!(is == wanted, "{} uses {is}, not {wanted}", node.name());
                }
                pods[0].ping(pods[1].ip, Echo::default())
            })
        };
        both("eth0")?;
        for _ in 0..2 {
            // The same address, but no network around it any more.
            let ip = n1.address();
            let narrow = format!(
                "ip addr add {ip}/32 dev eth0; ip addr del {ip}/24 dev eth0; \
                 ip route add 172.29.0.0/24 dev eth0 src {ip}; \
                 ip route replace default via 172.29.0.1 dev eth0"
            );
            n1.run("sh", &["-ec", &narrow])?;
            both(tunnel)?;
            let wide = format!(
                "ip route del 172.29.0.0/24; ip addr add {ip}/24 dev eth0; \
                 ip addr del {ip}/32 dev eth0; ip route replace default via 172.29.0.1 dev eth0"
            );
            n1.run("sh", &["-ec", &wide])?;
            both("eth0")?;
        }
        let Losses { sent, lost } = stream.stop()?;
        println!("{} of {sent} packets lost over four switches", lost.len());
        Ok(())
    });
}
