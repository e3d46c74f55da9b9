//! What several of the resources are made of.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A string type whose form the API server checks with rules in CEL.
macro_rules! checked_text {
    ($(#[$doc:meta])* $type:ident, $max:literal, [$(($rule:literal, $message:literal)),+ $(,)?]) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(pub String);

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string",
                    "maxLength": $max,
                    "x-kubernetes-validations": [
                        $({ "rule": $rule, "message": $message }),+
                    ],
                })
            }
        }
    };
}

checked_text!(
    /// A prefix, such as 10.64.0.0/16 or fd00:64::/48.
    CidrText,
    43,
    [(
        "isCIDR(self) && cidr(self) == cidr(self).masked()",
        "a prefix whose host bits are zero is needed, such as 10.64.0.0/16 or fd00:64::/48"
    )]
);
checked_text!(
    /// An IPv4 address.
    Ipv4Text,
    15,
    [(
        "isIP(self) && ip(self).family() == 4",
        "an IPv4 address is needed, such as 192.0.2.1"
    )]
);
checked_text!(
    /// An IPv6 address.
    Ipv6Text,
    45,
    [(
        "isIP(self) && ip(self).family() == 6",
        "an IPv6 address is needed, such as 2001:db8::1"
    )]
);

/// Whether a condition is so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It is.
    True,
    /// It is not.
    False,
    /// Nobody knows.
    Unknown,
}

/// A condition of the standard form (metav1.Condition).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StatusCondition {
    /// What it is about, such as Ready.
    #[schemars(length(min = 1, max = 316))]
    pub r#type: String,
    /// Whether it is so.
    pub status: ConditionStatus,
    /// One word, CamelCase.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
    /// A sentence for people.
    #[schemars(length(max = 32768))]
    pub message: String,
    /// When the status last changed.
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: String,
    /// The generation of the object that this was said of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// A list of conditions, one of each type.
pub(super) fn conditions(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = Vec::<StatusCondition>::json_schema(generator);
    schema.insert("x-kubernetes-list-type".into(), "map".into());
    schema.insert(
        "x-kubernetes-list-map-keys".into(),
        ["type"].as_slice().into(),
    );
    schema
}
