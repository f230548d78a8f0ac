//! What lies in `deploy/` fits together, and fits the program: names, ports, figures, alarms and their sections.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;
use serde_yaml_ng::Value;
use skein_client::{Client, Position, QueueSettings};
use skein_cluster_tests::{cluster::Cluster, scenario};

/// `raft.drain_ms`, and what closing connections and the log takes at most.
const LEAVE_S: u64 = 5 + 5;

/// The part of a configuration that depends on what is around the node.
#[derive(Deserialize)]
struct Config {
    listen: Addresses,
    cluster: Members,
}

#[derive(Deserialize)]
struct Members {
    members: Vec<Member>,
}

#[derive(Deserialize)]
struct Member {
    node_id: i64,
    grpc: String,
    http: String,
}

#[derive(Deserialize)]
struct Addresses {
    grpc: String,
    http: String,
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every document of a YAML file, with what `<<` brings in put in its place.
fn documents(name: &str) -> Vec<Value> {
    parse(&text(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn parse(yaml: &str) -> Result<Vec<Value>, serde_yaml_ng::Error> {
    let documents = serde_yaml_ng::Deserializer::from_str(yaml).map(|document| {
        let mut value = Value::deserialize(document)?;
        value.apply_merge()?;
        Ok(value)
    });
    documents.collect()
}

fn document(name: &str) -> Value {
    let [document] =
        documents(name).try_into().unwrap_or_else(|_| panic!("{name} has more than one document"));
    document
}

/// The manifest of this kind and name.
fn manifest(file: &str, kind: &str, name: &str) -> Value {
    let mut manifests = documents(file).into_iter();
    manifests
        .find(|manifest| manifest["kind"] == kind && manifest["metadata"]["name"] == name)
        .unwrap_or_else(|| panic!("{file} has no {kind} {name}"))
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a string: {value:?}"))
}

fn sequence(value: &Value) -> &[Value] {
    value.as_sequence().unwrap_or_else(|| panic!("not a list: {value:?}"))
}

fn strings(value: &Value) -> Vec<&str> {
    sequence(value).iter().map(string).collect()
}

fn config(name: &str) -> Config {
    toml::from_str(&text(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

impl Config {
    /// The ports that the node listens on: grpc, http.
    fn ports(&self) -> [u64; 2] {
        [&self.listen.grpc, &self.listen.http].map(|address| {
            let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
            port.unwrap_or_else(|| panic!("{address} has no port"))
        })
    }
}

/// The names of figures in a text.
fn figures(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("skein_")).collect()
}

fn alarms() -> Vec<Value> {
    sequence(&document("prometheus/alerts.yaml")["groups"][0]["rules"]).to_vec()
}

#[tokio::test]
async fn the_dashboard_and_the_alarms_name_figures_that_a_node_gives() {
    let cluster = Cluster::start(1).await.unwrap();
    // Figures of queues and groups are given where there are some.
    let client = Client::connect(cluster.addresses()).await.unwrap();
    client.create_queue("orders", QueueSettings::default()).await.unwrap();
    client.create_group("orders", "mail", Position::First).await.unwrap();
    let metrics = cluster.metrics(1).await.unwrap();
    let given = figures(&metrics);
    let dashboard: serde_json::Value = serde_json::from_str(&text("grafana/skein.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "two panels have the same id");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let shown = targets.map(|target| target["expr"].as_str().unwrap().to_owned());
    let watched = alarms().into_iter().map(|alarm| string(&alarm["expr"]).to_owned());
    for expression in shown.chain(watched) {
        for figure in figures(&expression) {
            assert!(given.contains(figure), "no node gives {figure}, which is asked for in {expression}");
        }
    }
}

#[test]
fn every_alarm_has_a_section_in_the_runbook_and_no_section_is_left_over() {
    let runbook = text("RUNBOOK.md");
    let sections: BTreeSet<_> = runbook.lines().filter_map(|line| line.strip_prefix("### Skein")).collect();
    let alarms = alarms();
    for alarm in &alarms {
        assert!(!string(&alarm["annotations"]["summary"]).is_empty());
        assert!(["warning", "critical"].contains(&string(&alarm["labels"]["severity"])));
    }
    let alarms = alarms.iter().map(|alarm| string(&alarm["alert"]).strip_prefix("Skein").unwrap());
    assert_eq!(alarms.collect::<BTreeSet<_>>(), sections);
}

#[test]
fn the_services_of_compose_are_the_members_of_its_configuration() {
    let compose = document("compose.yaml");
    let config = config("compose.toml");
    let [grpc_port, http_port] = config.ports();
    let members = config.cluster.members;
    assert_eq!(compose["services"].as_mapping().unwrap().len(), members.len());
    for Member { node_id, grpc, http } in members {
        let name = format!("skein-{node_id}");
        assert_eq!((grpc, http), (format!("{name}:{grpc_port}"), format!("{name}:{http_port}")));
        let service = &compose["services"][&name];
        assert_eq!(string(&service["environment"]["SKEIN_NODE_ID"]), node_id.to_string());
        assert!(strings(&service["volumes"]).contains(&format!("{name}:/var/lib/skein").as_str()));
        assert!(compose["volumes"].as_mapping().unwrap().contains_key(&name), "the volume of {name}");
        for (published, port) in strings(&service["ports"]).into_iter().zip([grpc_port, http_port]) {
            assert!(
                published.starts_with("127.0.0.1:") && published.ends_with(&format!(":{port}")),
                "{published}"
            );
        }
        assert_eq!(strings(&service["healthcheck"]["test"]), ["CMD", "/bin/skein-node", "health"]);
        assert_eq!(string(&service["restart"]), "unless-stopped");
        let grace = string(&service["stop_grace_period"]).strip_suffix('s').unwrap();
        assert!(grace.parse::<u64>().unwrap() > LEAVE_S);
    }
}

#[test]
fn the_pods_of_kubernetes_are_the_members_of_their_configuration() {
    let kustomization = document("kubernetes/kustomization.yaml");
    let namespace = string(&kustomization["namespace"]);
    let set = manifest("kubernetes/statefulset.yaml", "StatefulSet", "skein");
    let nodes = manifest("kubernetes/services.yaml", "Service", string(&set["spec"]["serviceName"]));
    assert_eq!(string(&nodes["spec"]["clusterIP"]), "None");
    assert_eq!(nodes["spec"]["publishNotReadyAddresses"].as_bool(), Some(true));
    manifest("kubernetes/namespace.yaml", "Namespace", namespace);
    manifest("kubernetes/services.yaml", "Service", "skein");

    let config = config("kubernetes/node.toml");
    let [grpc_port, http_port] = config.ports();
    let first = set["spec"]["ordinals"]["start"].as_i64().unwrap();
    let pods = first..first + set["spec"]["replicas"].as_i64().unwrap();
    let expected = pods.map(|ordinal| {
        let host = format!("skein-{ordinal}.{}.{namespace}.svc", string(&nodes["metadata"]["name"]));
        (ordinal, format!("{host}:{grpc_port}"), format!("{host}:{http_port}"))
    });
    let members = config.cluster.members.into_iter().map(|member| (member.node_id, member.grpc, member.http));
    assert_eq!(members.collect::<Vec<_>>(), expected.collect::<Vec<_>>());

    let listed: BTreeSet<_> = strings(&kustomization["resources"]).into_iter().map(str::to_owned).collect();
    let files = fs::read_dir(path("kubernetes")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let manifests = names.filter(|name| name.ends_with(".yaml") && name != "kustomization.yaml");
    assert_eq!(listed, manifests.collect::<BTreeSet<_>>());
}

#[test]
fn a_pod_is_probed_where_it_answers_and_has_what_it_needs() {
    let set = manifest("kubernetes/statefulset.yaml", "StatefulSet", "skein");
    let pod = &set["spec"]["template"]["spec"];
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > LEAVE_S);
    assert_eq!(pod["securityContext"]["runAsNonRoot"].as_bool(), Some(true));
    let container = &pod["containers"][0];
    let ports = sequence(&container["ports"]).iter();
    let ports: Vec<_> =
        ports.map(|port| (string(&port["name"]), port["containerPort"].as_u64().unwrap())).collect();
    let [grpc_port, http_port] = config("kubernetes/node.toml").ports();
    assert_eq!(ports, [("grpc", grpc_port), ("http", http_port)]);
    for (probe, path) in
        [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]
    {
        let asked = &container[probe]["httpGet"];
        assert_eq!((string(&asked["path"]), string(&asked["port"])), (path, "http"), "{probe}");
    }
    let kustomization = document("kubernetes/kustomization.yaml");
    let config_map = &kustomization["configMapGenerator"][0];
    assert_eq!(strings(&config_map["files"]), ["node.toml"]);
    assert_eq!(config_map["name"], pod["volumes"][0]["configMap"]["name"]);
    let offered = [&pod["volumes"][0]["name"], &set["spec"]["volumeClaimTemplates"][0]["metadata"]["name"]];
    for mount in sequence(&container["volumeMounts"]) {
        assert!(offered.contains(&&mount["name"]), "{mount:?}");
    }
    let budget = manifest("kubernetes/disruption-budget.yaml", "PodDisruptionBudget", "skein");
    assert_eq!(budget["spec"]["maxUnavailable"].as_u64(), Some(1));
}

#[test]
fn kustomize_joins_the_manifests() {
    let output = match Command::new("kubectl").arg("kustomize").arg(path("kubernetes")).output() {
        Ok(output) => output,
        Err(error) => {
            scenario::skip("kustomize_joins_the_manifests", &format!("cannot run kubectl: {error}"));
            return;
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let manifests = parse(&String::from_utf8(output.stdout).unwrap()).unwrap();
    let of_kind = |kind: &str| -> Vec<&Value> {
        manifests.iter().filter(|manifest| manifest["kind"] == kind).collect()
    };
    let set = of_kind("StatefulSet")[0];
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    assert!(labels.is_mapping());
    assert_eq!(&set["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(&of_kind("PodDisruptionBudget")[0]["spec"]["selector"]["matchLabels"], labels);
    for service in of_kind("Service") {
        assert_eq!(&service["spec"]["selector"], labels);
    }
    let config_map = &of_kind("ConfigMap")[0]["metadata"]["name"];
    assert_eq!(&set["spec"]["template"]["spec"]["volumes"][0]["configMap"]["name"], config_map);
}

#[test]
fn systemd_takes_the_unit() {
    let unit = text("systemd/skein-node.service");
    let setting = |name: &str| unit.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let patience_s: u64 = setting("TimeoutStopSec=").strip_suffix('s').unwrap().parse().unwrap();
    assert!(patience_s > LEAVE_S);
    let program = setting("ExecStart=").split(' ').next().unwrap();

    // It wants the program to be there.
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("skein-node.service");
    fs::write(&copy, unit.replace(program, "/bin/true")).unwrap();
    match Command::new("systemd-analyze").arg("verify").arg(&copy).output() {
        Err(error) => {
            scenario::skip("systemd_takes_the_unit", &format!("cannot run systemd-analyze: {error}"));
        }
        Ok(output) => {
            let complaint = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && !complaint.contains("skein-node.service"), "{complaint}");
        }
    }
}
