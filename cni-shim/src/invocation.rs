//! What the runtime asks for in environment variables.

use std::ffi::OsString;

use viaduct_model::AttachmentId;

use crate::CniError;

/// The verb in `CNI_COMMAND`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add(Attachment),
    /// Detach a container.
    Del(Attachment),
    /// Compare an attachment with what it should be.
    Check(Attachment),
    /// Remove what is left of attachments that are no more.
    Gc,
    /// Say whether containers can be attached.
    Status,
    /// Name the supported versions.
    Version,
}

/// The container that the verb is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Container and interface.
    pub id: AttachmentId,
    /// The path of the network namespace; may be empty with DEL.
    pub netns: String,
    /// `namespace/name` of the Kubernetes pod, when `CNI_ARGS` tells it.
    pub pod: Option<String>,
    /// All pairs of `CNI_ARGS`. Those that nobody here knows are others' business.
    pub args: Vec<(String, String)>,
}

/// Reads the environment; `None` when there is no `CNI_COMMAND` at all, that is
/// when a person started the plugin.
///
/// # Errors
/// Code 4; the message names every variable that is missing or invalid.
pub fn from_env(get: impl Fn(&str) -> Option<OsString>) -> Result<Option<Command>, CniError> {
    let Some(command) = get("CNI_COMMAND").filter(|c| !c.is_empty()) else {
        return Ok(None);
    };
    match command.to_str() {
        Some("ADD") => attachment(&get, true).map(|a| Some(Command::Add(a))),
        Some("DEL") => attachment(&get, false).map(|a| Some(Command::Del(a))),
        Some("CHECK") => attachment(&get, true).map(|a| Some(Command::Check(a))),
        Some("GC") => Ok(Some(Command::Gc)),
        Some("STATUS") => Ok(Some(Command::Status)),
        Some("VERSION") => Ok(Some(Command::Version)),
        _ => Err(environment(format!(
            "CNI_COMMAND: {:?} is not a verb of the CNI specification",
            command
                .to_string_lossy()
                .chars()
                .take(64)
                .collect::<String>()
        ))),
    }
}

fn attachment(
    get: &impl Fn(&str) -> Option<OsString>,
    needs_netns: bool,
) -> Result<Attachment, CniError> {
    let mut problems = Vec::new();
    let mut text = |name: &str, needed: bool| -> Option<String> {
        match get(name).map(OsString::into_string) {
            Some(Ok(value)) if !value.is_empty() => Some(value),
            Some(Err(_)) => {
                problems.push(format!("{name} is not UTF-8"));
                None
            }
            _ if needed => {
                problems.push(format!("{name} is missing"));
                None
            }
            _ => None,
        }
    };
    let container_id = text("CNI_CONTAINERID", true);
    let ifname = text("CNI_IFNAME", true);
    let netns = text("CNI_NETNS", needs_netns);
    let args = text("CNI_ARGS", false);

    // Each part is checked even when the other is missing, so that one run of the
    // plugin tells all that is wrong.
    let id = AttachmentId::new(
        container_id.as_deref().unwrap_or("x"),
        ifname.as_deref().unwrap_or("x"),
    );
    if let Err(invalid) = &id {
        problems.push(format!(
            "{} {:?} is not allowed: {}",
            invalid.field, invalid.value, invalid.allowed
        ));
    }
    let args = match args.as_deref().map(pairs_of) {
        Some(Err(pair)) => {
            problems.push(format!(
                "CNI_ARGS {pair:?} is not allowed: pairs KEY=VALUE separated by ';'"
            ));
            Vec::new()
        }
        Some(Ok(pairs)) => pairs,
        None => Vec::new(),
    };
    match id {
        Ok(id) if problems.is_empty() => Ok(Attachment {
            id,
            netns: netns.unwrap_or_default(),
            pod: pod_of(&args),
            args,
        }),
        _ => Err(environment(problems.join("; "))),
    }
}

/// The pairs of `CNI_ARGS`, or the first that is none.
fn pairs_of(args: &str) -> Result<Vec<(String, String)>, String> {
    args.split(';')
        .filter(|pair| !pair.is_empty())
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(pair.chars().take(64).collect()),
        })
        .collect()
}

/// The pod that they name.
fn pod_of(args: &[(String, String)]) -> Option<String> {
    let find = |key: &str| {
        let found = args.iter().rev().find(|(k, _)| k == key);
        found.map(|(_, value)| value.as_str())
    };
    let (namespace, name) = (find("K8S_POD_NAMESPACE")?, find("K8S_POD_NAME")?);
    Some(format!("{namespace}/{name}").chars().take(512).collect())
}

fn environment(msg: String) -> CniError {
    CniError::new(CniError::INVALID_ENVIRONMENT, msg)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<Option<Command>, CniError> {
        let env: BTreeMap<_, _> = pairs.iter().copied().collect();
        from_env(|name| env.get(name).map(OsString::from))
    }

    const GOOD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/x"),
    ];

    #[test]
    fn an_add_is_read_with_its_pod() {
        let mut pairs = GOOD.to_vec();
        pairs.push((
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web-0",
        ));
        let Ok(Some(Command::Add(attachment))) = with(&pairs) else {
            panic!("not an ADD");
        };
        assert_eq!(attachment.pod.as_deref(), Some("ns/web-0"));
        assert_eq!(attachment.netns, "/run/netns/x");
    }

    #[test]
    fn no_command_at_all_is_a_person() {
        assert_eq!(with(&[]), Ok(None));
    }

    #[test]
    fn every_missing_variable_is_named_at_once() {
        let error = with(&[("CNI_COMMAND", "ADD"), ("CNI_IFNAME", "a/b")]).unwrap_err();
        assert_eq!(error.code, 4);
        for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
            assert!(error.msg.contains(name), "{name}: {}", error.msg);
        }
    }

    #[test]
    fn del_needs_no_namespace() {
        let pairs = [
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", ""),
        ];
        assert!(matches!(with(&pairs), Ok(Some(Command::Del(_)))));
    }

    #[test]
    fn hostile_values_are_code_4() {
        for (name, value) in [
            ("CNI_COMMAND", "NUKE"),
            ("CNI_CONTAINERID", "../../etc"),
            ("CNI_IFNAME", "a-name-of-16-byt"),
            ("CNI_ARGS", "no pair"),
        ] {
            let mut pairs = GOOD.to_vec();
            pairs.push((name, value));
            let error = with(&pairs).unwrap_err();
            assert_eq!(error.code, 4);
            assert!(error.msg.contains(name), "{error:?}");
        }
        let error = from_env(|name| {
            let bytes: &[u8] = if name == "CNI_COMMAND" {
                b"ADD"
            } else {
                b"\xff"
            };
            Some(OsString::from_vec(bytes.to_vec()))
        })
        .unwrap_err();
        assert!(error.msg.contains("CNI_NETNS is not UTF-8"), "{error:?}");
    }
}
