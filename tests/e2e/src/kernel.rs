//! What a node's kernel holds of Viaduct, read with the tools that a user has.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use viaduct_lab::{Backend, Node, command, netns};

/// Everything of ours in a node's kernel, one line each, in a fixed order: links
/// with MAC, MTU and state, addresses, routes, neighbours, FDB entries, settings.
///
/// # Errors
/// When it cannot be listed.
pub fn ours(node: &Node) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut take = |what: &str, text: String, ours: fn(&str) -> bool| {
        lines.extend(
            text.lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
                .filter(|line| ours(line))
                .map(|line| format!("{what} {line}")),
        );
    };
    let on_our_link = |line: &str| line.contains("dev via");
    for (what, list) in [("link", "-o link show"), ("address", "-4 -o addr show")] {
        // Without the index, which a link that was made again has anew.
        let text: String = node
            .ip(list)?
            .lines()
            .filter_map(|line| Some(settled(line.split_once(' ')?.1) + "\n"))
            .collect();
        take(what, text, |line| line.starts_with("via"));
    }
    take("route", node.ip("route show table main")?, |line| {
        line.contains("proto 87")
    });
    take(
        "neighbour",
        node.ip("neigh show nud permanent")?,
        on_our_link,
    );
    take("fdb", node.run("bridge", &["fdb", "show"])?, |line| {
        line.contains("dev via") && line.contains(" dst ")
    });
    for family in ["4", "6"] {
        // Another reader than the agent's, and in the node's own namespace; without a
        // process for each value, which take long where they are emulated. These files have
        // no second byte to read, and so `read` finds no end of a line and fails.
        let script = format!(
            "cd /proc/sys/net/ipv{family}/conf && for link in via*; do \
             for key in forwarding rp_filter accept_ra; do \
             [ -e $link/$key ] || continue; read -r value < $link/$key || true; \
             echo ipv{family} $link $key ${{value:?nothing was read}}; done; done"
        );
        take("setting", node.run("sh", &["-c", &script])?, |_| true);
    }
    lines.sort();
    Ok(lines)
}

/// A link's line without what the kernel settles by itself a moment after a change:
/// carrier and operational state.
fn settled(line: &str) -> String {
    let up = |flags: &str| flags.split([',', '<', '>']).any(|flag| flag == "UP");
    let mut words = line.split_whitespace();
    let mut settled = Vec::new();
    while let Some(word) = words.next() {
        match word {
            "state" | "qdisc" => drop(words.next()),
            flags if flags.starts_with('<') => settled.push(if up(flags) { "up" } else { "down" }),
            _ => settled.push(word),
        }
    }
    settled.join(" ")
}

/// The backends whose link types this kernel has, VXLAN first. To be called in a lab.
pub fn backends_of_the_kernel() -> Vec<Backend> {
    let has = |backend: &Backend| {
        let link_type = match backend {
            Backend::Vxlan => "vxlan id 9 dstport 9",
            Backend::Ipip => "ipip",
            Backend::HostGw => return true,
        };
        let made = format!("link add try type {link_type} local 127.0.0.1\nlink del try\n");
        command::ip_batch(&made).is_ok()
    };
    let all = [Backend::Vxlan, Backend::HostGw, Backend::Ipip];
    all.into_iter().filter(has).collect()
}

/// How many lines of [`ours`] each block of a peer is.
pub fn entries(backend: Backend) -> usize {
    match backend {
        // Route, neighbour, FDB.
        Backend::Vxlan => 3,
        Backend::Ipip | Backend::HostGw => 1,
    }
}

/// Checks that a node holds exactly what its pods need: a link, a route, a
/// neighbour and a ledger entry for each, no spooled DEL, no address in use beyond.
///
/// # Errors
/// What there is too much or too little of.
pub fn leaks(node: &Node) -> Result<()> {
    let pods = node.pods().len();
    let lines = ours(node)?;
    // What belongs to pods; the tunnel's is `restarts` and `drift`s concern.
    let count = |what: &str, part: &str| {
        lines
            .iter()
            .filter(|line| line.starts_with(what) && line.contains(part))
            .filter(|line| !line.contains("via."))
            .count()
    };
    for (what, part) in [("link", "via"), ("route", "dev via"), ("neighbour", "via")] {
        let found = count(what, part);
        ensure!(
            found == pods,
            "{} has {found} {what}s for {pods} pods: {lines:#?}",
            node.name()
        );
    }
    for (directory, wanted) in [("endpoints", pods), ("pending", 0)] {
        let path = node.run_dir().join(directory);
        let found = match std::fs::read_dir(&path) {
            Ok(files) => files.count(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error).context(path.display().to_string()),
        };
        ensure!(
            found == wanted,
            "{} holds {found} files for {pods} pods",
            path.display()
        );
    }
    let used: f64 = node
        .metrics()?
        .lines()
        .filter(|line| line.starts_with("viaduct_addresses{") && line.contains("state=\"used\""))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    #[expect(clippy::cast_precision_loss, reason = "a handful of pods")]
    let wanted = pods as f64;
    ensure!(
        (used - wanted).abs() < 0.5,
        "{} counts {used} addresses in use for {pods} pods",
        node.name()
    );
    Ok(())
}

/// Everything that changes in a node's kernel, as `ip monitor` and `nft monitor` tell
/// it.
pub struct Monitor<'a> {
    node: &'a Node,
    children: Vec<Child>,
    outputs: Vec<PathBuf>,
}

/// A route and a table of nobody's, to see that the monitors have caught up.
const MARK: &str = "blackhole 198.18.0.1";
const TABLE_MARK: &str = "nobodys";

impl<'a> Monitor<'a> {
    /// Everything that happens after this has returned is seen.
    ///
    /// # Errors
    /// When the monitor does not come up.
    pub fn start(node: &'a Node) -> Result<Self> {
        let mut monitor = Self {
            node,
            children: Vec::new(),
            outputs: Vec::new(),
        };
        for program in ["ip", "nft"] {
            let output = PathBuf::from(format!("/run/lab/{program}-monitor-{}", node.name()));
            let file = File::create(&output)?;
            let mut command = command::command(program);
            command.args(["monitor"]).stdout(Stdio::from(file));
            let child = netns::within(node.netns(), || Ok(command.spawn()?))?;
            monitor.children.push(child);
            monitor.outputs.push(output);
        }
        monitor.catch_up()?;
        Ok(monitor)
    }

    /// Makes changes of nobody's until they are seen.
    fn catch_up(&self) -> Result<()> {
        let before = self.marks()?;
        crate::eventually(|| {
            self.node.ip(&format!("route add {MARK}"))?;
            self.node.ip(&format!("route del {MARK}"))?;
            self.node.run("nft", &["add", "table", TABLE_MARK])?;
            self.node.run("nft", &["delete", "table", TABLE_MARK])?;
            let seen = self.marks()?;
            let news = seen.iter().zip(&before).all(|(now, then)| now > then);
            ensure!(news, "ip monitor or nft monitor tells nothing");
            Ok(())
        })
    }

    fn marks(&self) -> Result<Vec<usize>> {
        let texts = self.texts()?.into_iter();
        let marks = ["198.18.0.1", TABLE_MARK];
        Ok(texts
            .zip(marks)
            .map(|(text, mark)| text.matches(mark).count())
            .collect())
    }

    fn texts(&self) -> Result<Vec<String>> {
        let outputs = self.outputs.iter();
        Ok(outputs
            .map(std::fs::read_to_string)
            .collect::<std::io::Result<_>>()?)
    }

    /// Ends, and says what was told of things of ours.
    ///
    /// # Errors
    /// When the monitor cannot be read.
    pub fn stop(mut self) -> Result<Vec<String>> {
        self.catch_up()?;
        for child in &mut self.children {
            child.kill()?;
            child.wait()?;
        }
        Ok(self
            .texts()?
            .iter()
            .flat_map(|text| text.lines())
            .filter(|line| {
                [": via", "proto 87", "dev via", " viaduct"]
                    .iter()
                    .any(|ours| line.contains(ours))
            })
            .map(str::to_owned)
            .collect())
    }
}
