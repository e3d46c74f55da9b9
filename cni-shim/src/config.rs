//! The network configuration that the runtime passes on standard input.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use viaduct_model::AttachmentId;

use crate::CniError;
use crate::version::CniVersion;

/// The largest configuration that is read, in bytes.
pub const MAX_CONFIG: usize = 1 << 20;

/// Where the agent listens unless the configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/viaduct/cni.sock";

/// The longest path that a unix socket's address can hold.
const MAX_SOCKET_PATH: usize = 107;

/// What the plugin needs of its network configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct NetConf {
    /// The version that the result has to be in.
    pub version: CniVersion,
    /// The network's name.
    pub name: String,
    /// The agent's socket.
    pub socket: PathBuf,
    /// The agent's run directory; holds the spool.
    pub run_dir: PathBuf,
    /// DNS settings, passed on into the result as they are.
    pub dns: Option<Value>,
    /// What came of the plugins before this one (ADD), or of the whole list (CHECK,
    /// DEL).
    pub previous_result: Option<Value>,
    /// The whole configuration, for what only one verb reads of it.
    pub object: Map<String, Value>,
}

/// A configuration that was refused, and the version to say so in.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// The version that the configuration named, or the newest.
    pub version: CniVersion,
    /// The reason.
    pub error: CniError,
}

impl NetConf {
    /// Reads a configuration from the bytes of standard input.
    ///
    /// # Errors
    /// Code 6 for what is no JSON object, 1 for an unsupported version, 7 for a
    /// wrong field and 2 for one that the plugin must not ignore.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refused> {
        let object = decode(bytes).map_err(|error| Refused {
            version: CniVersion::NEWEST,
            error,
        })?;
        let version = version_of(&object).map_err(|error| Refused {
            version: CniVersion::NEWEST,
            error,
        })?;
        Self::from_object(object, version).map_err(|error| Refused { version, error })
    }

    /// Refuses a verb that the configuration's version does not know.
    ///
    /// # Errors
    /// Code 1.
    pub fn allow(&self, verb: &str, since: CniVersion) -> Result<(), CniError> {
        if self.version >= since {
            return Ok(());
        }
        Err(CniError::new(
            CniError::INCOMPATIBLE_VERSION,
            format!("cniVersion {} does not allow {verb}", self.version),
        )
        .with_details(format!("{verb} came with {since}")))
    }

    /// The attachments that GC is to keep, by the names of their host ends.
    ///
    /// Without the field none is valid: libcni leaves it out when it is to collect all.
    ///
    /// # Errors
    /// Code 7 for what is no list of attachments: nothing may be collected by it.
    pub fn valid_attachments(&self) -> Result<Vec<String>, CniError> {
        let fields = ["cni.dev/valid-attachments", "cni.dev/attachments"];
        let Some((field, value)) = fields
            .iter()
            .find_map(|field| Some((*field, self.object.get(*field)?)))
        else {
            return Ok(Vec::new());
        };
        let wrong = |what: &Value| {
            let shown: String = what.to_string().chars().take(128).collect();
            invalid(field, &format!("is not a list of attachments: {shown}"))
        };
        let list = match value {
            // What Go makes of an empty list.
            Value::Null => return Ok(Vec::new()),
            Value::Array(list) => list,
            other => return Err(wrong(other)),
        };
        let mut links = Vec::with_capacity(list.len());
        for one in list {
            let container = one["containerID"].as_str().ok_or_else(|| wrong(one))?;
            let ifname = one["ifname"].as_str().ok_or_else(|| wrong(one))?;
            // An id that no ADD of ours would have taken is no attachment of ours.
            links.extend(AttachmentId::new(container, ifname).map(|id| id.link_name()));
        }
        Ok(links)
    }

    fn from_object(it: Map<String, Value>, version: CniVersion) -> Result<Self, CniError> {
        let object = &it;
        let name = text(object, "name")?.ok_or_else(|| invalid("name", "is missing"))?;
        let name = name.to_owned();
        if !valid_network_name(&name) {
            return Err(invalid(
                "name",
                &format!(
                    "{:?} is not allowed: letters, digits, '_', '.' and '-', beginning with a \
                     letter or digit",
                    name.chars().take(64).collect::<String>()
                ),
            ));
        }
        let socket = absolute(object, "socket")?.unwrap_or_else(|| DEFAULT_SOCKET.into());
        if socket.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(invalid(
                "socket",
                &format!("is too long: at most {MAX_SOCKET_PATH} bytes"),
            ));
        }
        let run_dir = match absolute(object, "runDir")? {
            Some(dir) => dir,
            None => socket.parent().unwrap_or(Path::new("/")).to_owned(),
        };
        let dns = match object.get("dns") {
            None | Some(Value::Null) => None,
            Some(Value::Object(dns)) if dns.is_empty() => None,
            Some(dns @ Value::Object(_)) => Some(dns.clone()),
            Some(_) => return Err(invalid("dns", "must be an object")),
        };
        match object.get("ipam") {
            None | Some(Value::Null) => {}
            Some(Value::Object(ipam)) if ipam.is_empty() => {}
            Some(ipam) => {
                let value: String = ipam.to_string().chars().take(128).collect();
                return Err(CniError::new(
                    CniError::UNSUPPORTED_FIELD,
                    format!("network configuration: field \"ipam\" with value {value} is not supported"),
                )
                .with_details("viaduct-agent assigns addresses from the node's blocks itself; remove \"ipam\""));
            }
        }
        let previous_result = object.get("prevResult").filter(|v| !v.is_null()).cloned();
        Ok(Self {
            version,
            name,
            socket,
            run_dir,
            dns,
            previous_result,
            object: it,
        })
    }
}

/// Reads the version that the runtime names with VERSION; nothing at all means
/// the newest, since early runtimes sent nothing.
///
/// # Errors
/// Code 6 when there is something that cannot be decoded.
pub fn requested_version(bytes: &[u8]) -> Result<String, CniError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(CniVersion::NEWEST.as_str().to_owned());
    }
    match decode(bytes)?.get("cniVersion") {
        None => Ok(CniVersion::NEWEST.as_str().to_owned()),
        Some(Value::String(version)) => Ok(version.clone()),
        Some(_) => Err(version_not_text()),
    }
}

fn decode(bytes: &[u8]) -> Result<Map<String, Value>, CniError> {
    let failed = |msg: String| {
        Err(CniError::new(CniError::DECODE_FAILURE, msg).with_details(
            "the runtime must pass the network configuration as one JSON object on standard input",
        ))
    };
    if bytes.len() > MAX_CONFIG {
        return failed(format!(
            "network configuration on standard input is too large: over {MAX_CONFIG} bytes"
        ));
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return failed("network configuration on standard input is empty".to_owned());
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => {
            return failed(format!(
                "network configuration on standard input is not UTF-8: {e}"
            ));
        }
    };
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => failed("network configuration on standard input is not a JSON object".to_owned()),
        Err(e) => failed(format!(
            "network configuration on standard input is not JSON: {e}"
        )),
    }
}

fn version_of(object: &Map<String, Value>) -> Result<CniVersion, CniError> {
    match object.get("cniVersion") {
        // The specification counts a configuration without a version as 0.1.0.
        None => CniVersion::parse("0.1.0").map_err(|mut e| {
            e.msg = "network configuration: field \"cniVersion\" is missing, which means 0.1.0, \
                     and that is not supported by viaduct"
                .to_owned();
            e
        }),
        Some(Value::String(version)) => CniVersion::parse(version),
        Some(_) => Err(version_not_text()),
    }
}

fn version_not_text() -> CniError {
    CniError::new(
        CniError::DECODE_FAILURE,
        "network configuration: field \"cniVersion\" is not a string",
    )
}

fn text<'a>(
    object: &'a Map<String, Value>,
    field: &'static str,
) -> Result<Option<&'a str>, CniError> {
    match object.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(invalid(field, "must be a string")),
    }
}

fn absolute(object: &Map<String, Value>, field: &'static str) -> Result<Option<PathBuf>, CniError> {
    match text(object, field)? {
        None => Ok(None),
        Some(path) if path.starts_with('/') && !path.contains('\0') => Ok(Some(path.into())),
        Some(path) => Err(invalid(
            field,
            &format!(
                "{:?} is not allowed: an absolute path",
                path.chars().take(128).collect::<String>()
            ),
        )),
    }
}

/// As the specification demands of network names since 0.4.0; the name goes into
/// file names of other plugins.
fn valid_network_name(name: &str) -> bool {
    name.len() <= 255
        && name
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn invalid(field: &'static str, why: &str) -> CniError {
    CniError::new(
        CniError::INVALID_CONFIG,
        format!("network configuration: field {field:?} {why}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> CniError {
        NetConf::parse(text.as_bytes()).unwrap_err().error
    }

    #[test]
    fn the_documented_configuration_is_read() {
        let conf = NetConf::parse(
            br#"{"cniVersion":"1.1.0","name":"viaduct","type":"viaduct","socket":"/run/v/cni.sock",
                "dns":{"nameservers":["10.96.0.10"]},"unknown":{"kept":"out"}}"#,
        )
        .unwrap();
        assert_eq!(conf.version, CniVersion::V1_1_0);
        assert_eq!(conf.run_dir, Path::new("/run/v"));
        assert!(conf.dns.is_some());
        assert!(conf.previous_result.is_none());
    }

    #[test]
    fn the_socket_has_a_default() {
        let conf = NetConf::parse(br#"{"cniVersion":"0.3.1","name":"n"}"#).unwrap();
        assert_eq!(conf.socket, Path::new(DEFAULT_SOCKET));
        assert_eq!(conf.run_dir, Path::new("/run/viaduct"));
    }

    #[test]
    fn valid_attachments_are_read_under_both_names_and_never_guessed() {
        let parse = |field: &str| {
            let text = format!(r#"{{"cniVersion":"1.1.0","name":"n"{field}}}"#);
            NetConf::parse(text.as_bytes()).unwrap().valid_attachments()
        };
        let link = AttachmentId::new("c1", "eth0").unwrap().link_name();
        let list = r#"[{"containerID":"c1","ifname":"eth0"},{"containerID":"","ifname":"x"}]"#;
        for field in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            let named = parse(&format!(r#","{field}":{list}"#)).unwrap();
            assert_eq!(named, [link.as_str()]);
        }
        assert!(parse("").unwrap().is_empty());
        assert!(
            parse(r#","cni.dev/valid-attachments":null"#)
                .unwrap()
                .is_empty()
        );
        for bad in ["{}", "7", "[7]", r#"[{"containerID":"c1"}]"#] {
            let error = parse(&format!(r#","cni.dev/valid-attachments":{bad}"#)).unwrap_err();
            assert_eq!(error.code, 7, "{bad}");
        }
    }

    #[test]
    fn a_verb_needs_the_version_that_it_came_with() {
        let conf = |version: &str| {
            let text = format!(r#"{{"cniVersion":"{version}","name":"n"}}"#);
            NetConf::parse(text.as_bytes()).unwrap()
        };
        assert_eq!(
            conf("0.3.1")
                .allow("CHECK", CniVersion::V0_4_0)
                .unwrap_err()
                .code,
            1
        );
        assert!(conf("0.4.0").allow("CHECK", CniVersion::V0_4_0).is_ok());
        assert_eq!(
            conf("1.0.0")
                .allow("GC", CniVersion::V1_1_0)
                .unwrap_err()
                .code,
            1
        );
    }

    #[test]
    fn what_cannot_be_decoded_is_code_6() {
        for bad in ["", " \n", "{", "[]", "7", r#"{"cniVersion":1,"name":"n"}"#] {
            assert_eq!(refusal(bad).code, 6, "{bad}");
        }
        assert_eq!(NetConf::parse(b"{\xff}").unwrap_err().error.code, 6);
        let large = vec![b' '; MAX_CONFIG + 1];
        assert_eq!(NetConf::parse(&large).unwrap_err().error.code, 6);
        let deep = "[".repeat(100_000);
        assert_eq!(refusal(&deep).code, 6);
    }

    #[test]
    fn unsupported_versions_are_code_1_before_anything_else() {
        assert_eq!(refusal("{}").code, 1);
        assert_eq!(refusal(r#"{"cniVersion":"9.0.0","socket":1}"#).code, 1);
    }

    #[test]
    fn wrong_fields_are_code_7_and_named() {
        for (bad, field) in [
            (r#"{"cniVersion":"1.0.0"}"#, "name"),
            (r#"{"cniVersion":"1.0.0","name":""}"#, "name"),
            (r#"{"cniVersion":"1.0.0","name":"a/b"}"#, "name"),
            (
                r#"{"cniVersion":"1.0.0","name":"n","socket":"rel"}"#,
                "socket",
            ),
            (r#"{"cniVersion":"1.0.0","name":"n","socket":7}"#, "socket"),
            (r#"{"cniVersion":"1.0.0","name":"n","runDir":""}"#, "runDir"),
            (
                r#"{"cniVersion":"1.0.0","name":"n","dns":"8.8.8.8"}"#,
                "dns",
            ),
        ] {
            let error = refusal(bad);
            assert_eq!(error.code, 7, "{bad}");
            assert!(error.msg.contains(field), "{error:?}");
        }
        let long = format!(
            r#"{{"cniVersion":"1.0.0","name":"n","socket":"/{}"}}"#,
            "s".repeat(107)
        );
        assert_eq!(refusal(&long).code, 7);
    }

    #[test]
    fn an_ipam_section_is_refused_not_ignored() {
        let error = refusal(r#"{"cniVersion":"1.0.0","name":"n","ipam":{"type":"host-local"}}"#);
        assert_eq!(error.code, 2);
        assert!(error.msg.contains("ipam") && error.msg.contains("host-local"));
    }
}
