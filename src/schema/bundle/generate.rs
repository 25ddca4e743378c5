//! Writes the schema bundle from k8s-openapi's schemas and our marker table, and fails when the checked-in one is stale.
//!
//! k8s-openapi knows every field, its JSON type, what is required and the description; `markers.txt` knows what Go and
//! Kubernetes' merge code know. `AMPHIPOD_WRITE_BUNDLE=1 cargo test --lib schema::bundle` rewrites the files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

/// Group, version and kind of the types that are served as objects of their own.
type Kinds = BTreeMap<String, (String, String, String)>;

/// Defines `all`: the definitions of all schemas, and which are kinds.
macro_rules! roots {
    (lists { $($list:ty),* $(,)? } singles { $($single:ty),* $(,)? } parts { $($part:ty),* $(,)? }) => {
        fn all() -> (Map<String, Value>, Kinds) {
            let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
            let mut kinds = Kinds::new();
            $( root::<$list>(&mut generator, &mut kinds); )*
            $( root::<$single>(&mut generator, &mut kinds); )*
            $( generator.subschema_for::<$part>(); )*
            let mut definitions = generator.take_definitions(false);
            $( list::<$list>(&mut definitions, &mut kinds); )*
            (definitions, kinds)
        }
    };
}

roots! {
    lists {
        k8s_openapi::api::admissionregistration::v1::MutatingAdmissionPolicy,
        k8s_openapi::api::admissionregistration::v1::MutatingAdmissionPolicyBinding,
        k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration,
        k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy,
        k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding,
        k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration,
        k8s_openapi::api::admissionregistration::v1alpha1::MutatingAdmissionPolicy,
        k8s_openapi::api::admissionregistration::v1alpha1::MutatingAdmissionPolicyBinding,
        k8s_openapi::api::admissionregistration::v1beta1::MutatingAdmissionPolicy,
        k8s_openapi::api::admissionregistration::v1beta1::MutatingAdmissionPolicyBinding,
        k8s_openapi::api::apiserverinternal::v1alpha1::StorageVersion,
        k8s_openapi::api::apps::v1::ControllerRevision,
        k8s_openapi::api::apps::v1::DaemonSet,
        k8s_openapi::api::apps::v1::Deployment,
        k8s_openapi::api::apps::v1::ReplicaSet,
        k8s_openapi::api::apps::v1::StatefulSet,
        k8s_openapi::api::autoscaling::v1::HorizontalPodAutoscaler,
        k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler,
        k8s_openapi::api::batch::v1::CronJob,
        k8s_openapi::api::batch::v1::Job,
        k8s_openapi::api::certificates::v1::CertificateSigningRequest,
        k8s_openapi::api::certificates::v1::ClusterTrustBundle,
        k8s_openapi::api::certificates::v1::PodCertificateRequest,
        k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle,
        k8s_openapi::api::certificates::v1beta1::PodCertificateRequest,
        k8s_openapi::api::coordination::v1::Lease,
        k8s_openapi::api::coordination::v1alpha2::LeaseCandidate,
        k8s_openapi::api::coordination::v1beta1::LeaseCandidate,
        k8s_openapi::api::core::v1::ComponentStatus,
        k8s_openapi::api::core::v1::ConfigMap,
        k8s_openapi::api::core::v1::Endpoints,
        k8s_openapi::api::core::v1::Event,
        k8s_openapi::api::core::v1::LimitRange,
        k8s_openapi::api::core::v1::Namespace,
        k8s_openapi::api::core::v1::Node,
        k8s_openapi::api::core::v1::PersistentVolume,
        k8s_openapi::api::core::v1::PersistentVolumeClaim,
        k8s_openapi::api::core::v1::Pod,
        k8s_openapi::api::core::v1::PodTemplate,
        k8s_openapi::api::core::v1::ReplicationController,
        k8s_openapi::api::core::v1::ResourceQuota,
        k8s_openapi::api::core::v1::Secret,
        k8s_openapi::api::core::v1::Service,
        k8s_openapi::api::core::v1::ServiceAccount,
        k8s_openapi::api::discovery::v1::EndpointSlice,
        k8s_openapi::api::events::v1::Event,
        k8s_openapi::api::flowcontrol::v1::FlowSchema,
        k8s_openapi::api::flowcontrol::v1::PriorityLevelConfiguration,
        k8s_openapi::api::lifecycle::v1alpha1::Eviction,
        k8s_openapi::api::lifecycle::v1alpha1::EvictionRequest,
        k8s_openapi::api::networking::v1::IPAddress,
        k8s_openapi::api::networking::v1::Ingress,
        k8s_openapi::api::networking::v1::IngressClass,
        k8s_openapi::api::networking::v1::NetworkPolicy,
        k8s_openapi::api::networking::v1::ServiceCIDR,
        k8s_openapi::api::node::v1::RuntimeClass,
        k8s_openapi::api::policy::v1::PodDisruptionBudget,
        k8s_openapi::api::rbac::v1::ClusterRole,
        k8s_openapi::api::rbac::v1::ClusterRoleBinding,
        k8s_openapi::api::rbac::v1::Role,
        k8s_openapi::api::rbac::v1::RoleBinding,
        k8s_openapi::api::resource::v1::DeviceClass,
        k8s_openapi::api::resource::v1::DeviceTaintRule,
        k8s_openapi::api::resource::v1::ResourceClaim,
        k8s_openapi::api::resource::v1::ResourceClaimTemplate,
        k8s_openapi::api::resource::v1::ResourceSlice,
        k8s_openapi::api::resource::v1alpha3::DeviceTaintRule,
        k8s_openapi::api::resource::v1alpha3::ResourcePoolStatusRequest,
        k8s_openapi::api::resource::v1beta1::DeviceClass,
        k8s_openapi::api::resource::v1beta1::ResourceClaim,
        k8s_openapi::api::resource::v1beta1::ResourceClaimTemplate,
        k8s_openapi::api::resource::v1beta1::ResourceSlice,
        k8s_openapi::api::resource::v1beta2::DeviceClass,
        k8s_openapi::api::resource::v1beta2::DeviceTaintRule,
        k8s_openapi::api::resource::v1beta2::ResourceClaim,
        k8s_openapi::api::resource::v1beta2::ResourceClaimTemplate,
        k8s_openapi::api::resource::v1beta2::ResourceSlice,
        k8s_openapi::api::scheduling::v1::PriorityClass,
        k8s_openapi::api::scheduling::v1alpha3::CompositePodGroup,
        k8s_openapi::api::scheduling::v1alpha3::PodGroup,
        k8s_openapi::api::scheduling::v1alpha3::Workload,
        k8s_openapi::api::scheduling::v1beta1::PodGroup,
        k8s_openapi::api::scheduling::v1beta1::Workload,
        k8s_openapi::api::storage::v1::CSIDriver,
        k8s_openapi::api::storage::v1::CSINode,
        k8s_openapi::api::storage::v1::CSIStorageCapacity,
        k8s_openapi::api::storage::v1::StorageClass,
        k8s_openapi::api::storage::v1::VolumeAttachment,
        k8s_openapi::api::storage::v1::VolumeAttributesClass,
        k8s_openapi::api::storagemigration::v1::StorageVersionMigration,
        k8s_openapi::api::storagemigration::v1beta1::StorageVersionMigration,
        k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
        k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService,
    } singles {
        k8s_openapi::api::authentication::v1::SelfSubjectReview,
        k8s_openapi::api::authentication::v1::TokenRequest,
        k8s_openapi::api::authentication::v1::TokenReview,
        k8s_openapi::api::authorization::v1::LocalSubjectAccessReview,
        k8s_openapi::api::authorization::v1::SelfSubjectAccessReview,
        k8s_openapi::api::authorization::v1::SelfSubjectRulesReview,
        k8s_openapi::api::authorization::v1::SubjectAccessReview,
        k8s_openapi::api::autoscaling::v1::Scale,
        k8s_openapi::api::core::v1::Binding,
        k8s_openapi::api::policy::v1::Eviction,
        k8s_openapi::apimachinery::pkg::apis::meta::v1::APIGroup,
        k8s_openapi::apimachinery::pkg::apis::meta::v1::APIVersions,
        k8s_openapi::apimachinery::pkg::apis::meta::v1::Status,
    } parts {
        k8s_openapi::apimachinery::pkg::apis::meta::v1::APIGroupList,
        k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList,
        k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions,
        k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta,
        k8s_openapi::apimachinery::pkg::apis::meta::v1::Patch,
        k8s_openapi::apimachinery::pkg::apis::meta::v1::WatchEvent<()>,
        k8s_openapi::apimachinery::pkg::version::Info,
    }
}

fn root<T>(generator: &mut SchemaGenerator, kinds: &mut Kinds)
where
    T: schemars::JsonSchema + k8s_openapi::Resource,
{
    generator.subschema_for::<T>();
    kinds.insert(T::schema_name().into_owned(), (T::GROUP.into(), T::VERSION.into(), T::KIND.into()));
}

/// Lists have no schema in k8s-openapi; all of them look alike.
fn list<T>(definitions: &mut Map<String, Value>, kinds: &mut Kinds)
where
    T: schemars::JsonSchema + k8s_openapi::ListableResource,
{
    let item = T::schema_name().into_owned();
    let prefix = item.rsplit_once('.').map_or("", |(p, _)| p);
    let name = format!("{prefix}.{}", T::LIST_KIND);
    let object = &definitions[&item]["properties"];
    let schema = serde_json::json!({
        "description": format!("{} is a list of {}.", T::LIST_KIND, T::KIND),
        "properties": {
            "apiVersion": object["apiVersion"],
            "kind": object["kind"],
            "items": {"type": "array", "items": {"$ref": format!("#/$defs/{item}")}, "description": "List of objects."},
            "metadata": {
                "$ref": "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta",
                "description": "Standard list metadata. More info: \
                    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds",
            },
        },
        "required": ["items"],
    });
    definitions.insert(name.clone(), schema);
    kinds.insert(name, (T::GROUP.into(), T::VERSION.into(), T::LIST_KIND.into()));
}

/// Types that are one of the scalars or open values of the bundle, not structs.
fn special(name: &str) -> Option<&'static str> {
    let last = name.rsplit('.').next()?;
    let meta = name.starts_with("io.k8s.apimachinery.");
    Some(match last {
        "Time" if meta => "t",
        "MicroTime" if meta => "m",
        "Quantity" if meta => "q",
        "IntOrString" if meta => "o",
        "RawExtension" if meta => "r",
        "FieldsV1" if meta => "r",
        "Patch" if meta => "r",
        "JSON" => "j",
        "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrStringArray" => {
            "xio.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps"
        }
        _ => return None,
    })
}

fn short(name: &str) -> &str {
    name.strip_prefix(super::API).filter(|rest| rest.starts_with('.')).unwrap_or(name)
}

/// The bundle's text for a field's type.
fn kind_of(schema: &Value) -> String {
    if let Some(target) = schema["$ref"].as_str() {
        let name = target.rsplit('/').next().unwrap_or("");
        return special(name).map_or_else(|| format!("&{}", short(name)), str::to_owned);
    }
    match (schema["type"].as_str(), schema["format"].as_str()) {
        (Some("array"), _) => format!("[{}", kind_of(&schema["items"])),
        (Some("object"), _) if schema["additionalProperties"].is_object() => {
            format!("{{{}", kind_of(&schema["additionalProperties"]))
        }
        (Some("object"), _) => "r".into(),
        (Some("string"), Some("byte")) => "y".into(),
        (Some("string"), _) => "s".into(),
        (Some("boolean"), _) => "b".into(),
        (Some("integer"), Some("int32")) => "i".into(),
        (Some("integer"), _) => "l".into(),
        (Some("number"), _) => "d".into(),
        other => panic!("no bundle type for {other:?} in {schema}"),
    }
}

/// What Go writes for a field that `markers.txt` does not mention.
fn default_emit(required: bool, kind: &str) -> &'static str {
    let first = kind.as_bytes()[0];
    if required {
        return if b"[{ytmrjx".contains(&first) { "n" } else { "e" };
    }
    match first {
        b'&' | b't' | b'm' | b'r' | b'j' | b'x' => "p",
        _ => "s",
    }
}

/// Type name to (type's own marks, field name to marks).
type Markers<'a> = BTreeMap<&'a str, (&'a str, BTreeMap<&'a str, &'a str>)>;

fn markers(text: &str) -> Markers<'_> {
    let mut all = Markers::new();
    let mut current = "";
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        if let Some(head) = line.strip_prefix("@ ") {
            let (name, marks) = head.split_once(' ').unwrap_or((head, ""));
            current = name;
            all.insert(name, (marks, BTreeMap::new()));
        } else if let Some((field, marks)) = line.trim_start().split_once(' ') {
            all.get_mut(current).expect("a type comes first").1.insert(field, marks);
        }
    }
    all
}

fn write(definitions: &Map<String, Value>, kinds: &Kinds, markers: &Markers<'_>) -> (String, Vec<String>) {
    let (mut types, mut descriptions) = (String::new(), Vec::new());
    let mut used = BTreeSet::new();
    for (name, schema) in definitions.iter().filter(|(n, _)| special(n).is_none()) {
        let (type_marks, field_marks) = markers.get(name.as_str()).map_or(("", None), |(t, f)| (*t, Some(f)));
        write!(types, "@ {}", short(name)).expect("string");
        if !type_marks.is_empty() {
            write!(types, " {type_marks}").expect("string");
        }
        if let Some((group, version, kind)) = kinds.get(name) {
            write!(types, " gvk={group}/{version}/{kind}").expect("string");
        }
        types.push('\n');
        let mut text = String::new();
        describe(&mut text, schema);
        let required: BTreeSet<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (field, of) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let kind = kind_of(of);
            let required = required.contains(field.as_str());
            let marks = field_marks.and_then(|f| f.get(field.as_str())).copied().unwrap_or("-");
            used.insert((name.as_str(), field.as_str()));
            let (emit, marks) = marks.split_once(' ').unwrap_or((marks, ""));
            let emit = match emit {
                "-" if kind.ends_with(".v1.ListMeta") => "e",
                "-" => default_emit(required, &kind),
                emit => emit,
            };
            // The table knows better than k8s-openapi what is required.
            let required = match marks.split(' ').next() {
                Some("!") => true,
                Some("?") => false,
                _ => required,
            };
            let marks = marks.trim_start_matches(['!', '?']).trim_start();
            write!(types, " {field} {kind} {emit}").expect("string");
            if required {
                types.push_str(" !");
            }
            if !marks.is_empty() {
                write!(types, " {marks}").expect("string");
            }
            types.push('\n');
            describe(&mut text, of);
        }
        descriptions.push(text);
    }
    for (name, (_, fields)) in markers.iter().filter(|(n, _)| definitions.contains_key(**n)) {
        for field in fields.keys() {
            assert!(used.contains(&(name, field)), "markers.txt names {name}.{field}, which does not exist");
        }
    }
    (types, descriptions)
}

fn describe(text: &mut String, schema: &Value) {
    let plain = schema["description"].as_str().unwrap_or("");
    text.push_str(&plain.replace('\\', "\\\\").replace('\n', "\\n").replace('\t', "\\t"));
    text.push('\n');
}

#[test]
fn the_bundle_is_fresh() {
    let (definitions, kinds) = all();
    let (types, descriptions) = write(&definitions, &kinds, &markers(include_str!("markers.txt")));
    let half = descriptions.len() / 2;
    let parts = [descriptions[..half].concat(), descriptions[half..].concat()];
    if std::env::var_os("AMPHIPOD_WRITE_BUNDLE").is_some() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/schema/bundle");
        std::fs::write(folder.join("types.txt"), &types).expect("write");
        for (i, part) in parts.iter().enumerate() {
            let packed = zstd::encode_all(part.as_bytes(), 19).expect("compress");
            std::fs::write(folder.join(format!("descriptions-{i}.zst")), packed).expect("write");
        }
        return;
    }
    let hint = "stale: run AMPHIPOD_WRITE_BUNDLE=1 cargo test --lib schema::bundle";
    assert!(types == super::TYPES, "types.txt is {hint}");
    for (part, packed) in parts.iter().zip(super::DESCRIPTIONS) {
        let text = zstd::decode_all(packed).expect("decompress");
        assert!(text == part.as_bytes(), "the descriptions are {hint}");
    }
}

#[test]
fn every_reference_in_the_bundle_resolves_and_fields_are_sorted() {
    let schema = super::bundle();
    assert!(schema.structs.len() > 800, "{}", schema.structs.len());
    for s in &schema.structs {
        let fields = &schema.fields[s.first as usize..(s.first + s.count) as usize];
        assert!(fields.windows(2).all(|w| w[0].name < w[1].name), "{}", s.name);
    }
    let kept = schema.fields.len() * size_of::<super::Field>() + schema.nodes.len() * size_of::<super::Node>();
    assert!(kept < 1_500_000, "{kept} bytes");
    let texts = super::Descriptions::load();
    let pod = schema.by_name["io.k8s.api.core.v1.Pod"];
    let texts: Vec<String> = texts.all_of(pod).collect();
    assert!(texts[0].starts_with("Pod is a collection of containers"));
    assert!(texts[5].starts_with("Most recently observed status"), "{texts:?}");
}
