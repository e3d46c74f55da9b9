//! The MTU of tunnel and pods: what the underlay leaves, or what was asked for. Pure.

use viaduct_model::Invalid;

use crate::backend::Backend;
use crate::state::UnderlayLink;

/// The least that an IPv4 host must take (RFC 791), and the least that a node's record
/// may say.
const LEAST: u32 = 576;

/// What was asked for if it fits, else what fits.
///
/// # Errors
/// When what was asked for does not fit, with the number that does; when nothing does.
pub fn asked_or_fitting(
    asked: Option<u32>,
    backend: &Backend,
    underlay: &UnderlayLink,
) -> Result<u32, Invalid> {
    let fits = fits(backend, underlay)?;
    match asked {
        Some(asked) if asked > fits => Err(Invalid::new(
            "flag",
            "--mtu",
            asked,
            format!("at most {fits}: {}", sum(backend, underlay)),
        )),
        Some(asked) => Ok(asked),
        None => Ok(fits),
    }
}

/// The same while the node runs: what was asked for and no longer fits gives way to what
/// does, with a warning.
///
/// # Errors
/// When nothing fits.
pub fn following(
    asked: Option<u32>,
    backend: &Backend,
    underlay: &UnderlayLink,
) -> Result<(u32, Option<String>), Invalid> {
    let fits = fits(backend, underlay)?;
    Ok(match asked {
        Some(asked) if asked > fits => {
            let why = sum(backend, underlay);
            let warning = format!("--mtu {asked} does not fit any more, {fits} is used: {why}");
            (fits, Some(warning))
        }
        asked => (asked.unwrap_or(fits), None),
    })
}

fn fits(backend: &Backend, underlay: &UnderlayLink) -> Result<u32, Invalid> {
    let fits = underlay.mtu.saturating_sub(backend.overhead);
    if fits < LEAST {
        return Err(Invalid::new(
            format!("link {}", underlay.name),
            "mtu",
            underlay.mtu,
            format!(
                "at least {}: pods need {LEAST} and {} takes {}",
                LEAST + backend.overhead,
                backend.name,
                backend.overhead
            ),
        ));
    }
    // Loopback-like links have more than an IPv4 packet can be.
    Ok(fits.min(65_535))
}

fn sum(backend: &Backend, underlay: &UnderlayLink) -> String {
    format!(
        "the MTU of {} is {} and {} takes {}",
        underlay.name, underlay.mtu, backend.name, backend.overhead
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{host_gw, ipip, vxlan};

    fn underlay(mtu: u32) -> UnderlayLink {
        UnderlayLink {
            name: "eth0".into(),
            index: 2,
            address: "192.0.2.1".parse().unwrap(),
            public_address: "192.0.2.1".parse().unwrap(),
            networks: Vec::new(),
            mac: None,
            mtu,
        }
    }

    #[test]
    fn the_mtu_leaves_room_for_the_tunnel() {
        for (backend, fits) in [
            (&vxlan::BACKEND, 1450),
            (&ipip::BACKEND, 1480),
            (&host_gw::BACKEND, 1500),
        ] {
            let asked = |mtu| asked_or_fitting(mtu, backend, &underlay(1500));
            assert_eq!(asked(None), Ok(fits));
            assert_eq!(asked(Some(1400)), Ok(1400));
            let error = asked(Some(fits + 1)).unwrap_err().to_string();
            assert!(error.contains(&format!("at most {fits}")), "{error}");
        }
    }

    #[test]
    fn an_override_gives_way_to_a_smaller_underlay_and_comes_back() {
        let following = |mtu| following(Some(1450), &vxlan::BACKEND, &underlay(mtu)).unwrap();
        assert_eq!(following(1500), (1450, None));
        let (mtu, warning) = following(1400);
        assert_eq!(mtu, 1350);
        assert!(warning.unwrap().contains("--mtu 1450 does not fit"));
    }

    #[test]
    fn an_underlay_that_leaves_too_little_is_refused_with_the_number_that_does() {
        let error = asked_or_fitting(None, &vxlan::BACKEND, &underlay(600)).unwrap_err();
        assert!(error.to_string().contains("at least 626"), "{error}");
        assert!(following(None, &vxlan::BACKEND, &underlay(600)).is_err());
    }
}
