//! Looks the underlay over: asks the kernel, decides by [`crate::underlay`] and
//! [`crate::mtu`], and says what this node is then. Blocks.
//!
//! Used by `run` once at the start, where what is unclear is an error, and then by the
//! steward whenever something about the underlay may have changed, where what is
//! unclear leaves everything as it was and is told.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context as _;
use viaduct_model::{Invalid, NodeName};

use crate::backend::Backend;
use crate::flags::Flags;
use crate::kernel::{NetlinkSocket, survey};
use crate::mtu;
use crate::state::{LocalNode, UnderlayTrouble};
use crate::underlay::{self, Wish};

/// What the flags want of the underlay.
#[derive(Debug, Clone)]
pub struct Terms {
    /// How pod traffic is carried.
    pub backend: &'static Backend,
    /// Where the tunnels begin, as far as the flags say.
    pub place: Place,
    /// `--public-ip`.
    pub public_ip: Option<Ipv4Addr>,
    /// `--mtu`.
    pub mtu: Option<u32>,
    /// `--masquerade`.
    pub masquerade: bool,
}

/// Where the tunnels begin, as far as the flags say.
#[derive(Debug, Clone)]
pub enum Place {
    /// As it is known already.
    Known(Wish),
    /// `--can-reach`, which the kernel is asked about each time.
    CanReach(IpAddr),
}

impl Place {
    fn wish(&self) -> anyhow::Result<Wish> {
        let target = match self {
            Place::Known(wish) => return Ok(wish.clone()),
            Place::CanReach(target) => *target,
        };
        let source = survey::source_towards(target)
            .with_context(|| format!("--can-reach {target}: there is no route to it"))?;
        let IpAddr::V4(source) = source else {
            return Err(Invalid::new(
                "flag",
                "--can-reach",
                target,
                "an IPv4 address, as this release's underlay is IPv4",
            )
            .into());
        };
        Ok(Wish::CanReach { target, source })
    }
}

impl Terms {
    /// What the flags say.
    pub fn of(flags: &Flags) -> Self {
        let place = match (&flags.iface, &flags.iface_regex, flags.can_reach) {
            (Some(name), _, _) => Place::Known(Wish::Iface(name.clone())),
            (_, Some(regex), _) => Place::Known(Wish::IfaceRegex(regex.clone())),
            (_, _, Some(target)) => Place::CanReach(target),
            _ => Place::Known(Wish::DefaultRoute),
        };
        Self {
            backend: flags.backend,
            place,
            public_ip: flags.public_ip,
            mtu: flags.mtu,
            masquerade: flags.masquerade,
        }
    }
}

/// Looks the underlay over, with a netlink socket of its own.
#[derive(Debug)]
pub struct Lookout {
    socket: NetlinkSocket,
    terms: Terms,
}

impl Lookout {
    /// Checks that the kernel has what the backend needs.
    ///
    /// # Errors
    /// Names the kernel module that is missing and how to load it.
    pub fn open(terms: Terms) -> anyhow::Result<Self> {
        let mut socket = NetlinkSocket::open()?;
        let backend = terms.backend;
        if let Some(kind) = backend.link_type
            && !kind.is_known(&mut socket)?
        {
            let module = kind.module();
            anyhow::bail!(
                "--backend {} needs the kernel module {module}, which this kernel has not loaded: \
                 load it with `modprobe {module}`, and at each boot by a line {module} in \
                 /etc/modules-load.d/viaduct.conf",
                backend.name
            );
        }
        Ok(Self { socket, terms })
    }

    /// This node as the flags and the system say, before it owns a block.
    ///
    /// # Errors
    /// When the underlay's address is not clear, or the MTU that was asked for does not
    /// fit.
    pub fn first(
        &mut self,
        name: &NodeName,
        tuning: &crate::backend::Tuning,
        direct_routing: bool,
    ) -> anyhow::Result<LocalNode> {
        let terms = &self.terms;
        let survey = survey::survey(&mut self.socket)?;
        let underlay = underlay::choose(&survey, &terms.place.wish()?, terms.public_ip)?;
        Ok(LocalNode {
            name: name.clone(),
            carrier: (terms.backend.carrier)(name, tuning),
            direct_routing,
            masquerade: terms.masquerade,
            mtu: mtu::asked_or_fitting(terms.mtu, terms.backend, &underlay)?,
            underlay,
            overlay: None,
        })
    }

    /// Brings `local` up to date; what cannot be known stays as it was and is told.
    pub fn look(&mut self, local: &mut LocalNode) -> UnderlayTrouble {
        let mut trouble = UnderlayTrouble::default();
        if let Err(error) = self.try_look(local, &mut trouble) {
            trouble.problems.push(format!(
                "the underlay stays {} on {} as it was: {error:#}",
                local.underlay.address, local.underlay.name
            ));
        }
        trouble
    }

    fn try_look(
        &mut self,
        local: &mut LocalNode,
        trouble: &mut UnderlayTrouble,
    ) -> anyhow::Result<()> {
        let terms = &self.terms;
        let survey = survey::survey(&mut self.socket)?;
        let chosen = terms
            .place
            .wish()
            .and_then(|wish| Ok(underlay::choose(&survey, &wish, terms.public_ip)?));
        let underlay = match chosen {
            Ok(underlay) => underlay,
            Err(why) => underlay::stay(&survey, &local.underlay, terms.public_ip).ok_or(why)?,
        };
        match mtu::following(terms.mtu, terms.backend, &underlay) {
            Ok((mtu, warning)) => {
                local.mtu = mtu;
                trouble.warnings.extend(warning);
            }
            Err(too_small) => trouble.problems.push(too_small.to_string()),
        }
        local.underlay = underlay;
        Ok(())
    }

    /// Which of `peers` the kernel reaches on the underlay's link itself.
    ///
    /// # Errors
    /// What the socket suffers.
    pub fn on_link(
        &mut self,
        local: &LocalNode,
        peers: impl IntoIterator<Item = Ipv4Addr>,
    ) -> anyhow::Result<BTreeSet<Ipv4Addr>> {
        // Others are not adjacent anyway.
        let near = |ip: &Ipv4Addr| {
            let ip = IpAddr::V4(*ip);
            local.underlay.networks.iter().any(|net| net.contains(ip))
        };
        let near = peers.into_iter().filter(near);
        Ok(survey::on_link(
            &mut self.socket,
            local.underlay.index,
            near,
        )?)
    }
}
