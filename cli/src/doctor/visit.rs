//! From the settings to the report of `doctor`.

use serde_json::json;

use crate::config::Settings;
use crate::doctor::advice;
use crate::doctor::examine::{Facts, examine};
use crate::doctor::trial::{self, Trial};
use crate::failure::{NO, Result};
use crate::library;
use crate::nodes::fan_out::{Absent, Nodes};
use crate::nodes::spec::NodeSpec;
use crate::output::{Output, table};

const COLUMNS: [&str; 7] = [
    "NODE",
    "VERSION",
    "ROLE",
    "PERSISTENCE",
    "EVICTION",
    "CLOCK",
    "PING p50/p99",
];

/// Examines all nodes, and says what to change. Returns the exit status.
pub(crate) fn doctor(settings: &Settings, pings: u32, output: Output) -> Result<u8> {
    let mut nodes = Nodes::new(settings)?;
    let answers = nodes.ask(|connection| examine(connection, &settings.prefix, pings));
    let names: Vec<String> = nodes.names().map(str::to_owned).collect();
    let mut report = Report::default();
    let specs = names.iter().zip(&settings.nodes);
    for ((name, spec), servers) in specs.zip(&answers.by_node) {
        match servers {
            Some(servers) => {
                let is_replica = servers.iter().any(|facts| facts.is_replica);
                let refusal = (!is_replica).then(|| refusal_of(spec, settings)).flatten();
                report.add_node(name, servers, refusal.as_deref(), settings);
            }
            None => {
                let absent = answers.absent.iter().filter(|absent| absent.node == *name);
                absent.take(1).for_each(|absent| report.add_absent(absent));
            }
        }
    }
    if let Some(text) = advice::of_list(names.len()) {
        report.advice.push(text);
    }
    if nodes.require_quorum(&answers.absent).is_ok() {
        report.add_trials(trial::run(library::config(settings)));
    }
    report.write(output)?;
    nodes.require_quorum(&answers.absent)?;
    Ok(if report.advice.is_empty() { 0 } else { NO })
}

/// Returns why a node grants no lock, if it does not. A node that has just started may be in
/// quarantine, and that is no fault.
fn refusal_of(spec: &NodeSpec, settings: &Settings) -> Option<String> {
    trial::refusal(library::config(&Settings {
        nodes: vec![spec.clone()],
        quarantine: None,
        ..settings.clone()
    }))
}

#[derive(Default)]
struct Report {
    rows: Vec<[String; 7]>,
    objects: Vec<serde_json::Value>,
    trials: Vec<String>,
    advice: Vec<String>,
}

impl Report {
    fn add_node(
        &mut self,
        name: &str,
        servers: &[Facts],
        refusal: Option<&str>,
        settings: &Settings,
    ) {
        let has_quarantine = settings.quarantine.is_some();
        for facts in servers {
            // The masters of a cluster are members of it by right.
            let mut facts = facts.clone();
            facts.is_cluster &= servers.len() == 1 && !name.starts_with("cluster(");
            let mut advice = advice::of_server(&facts, settings.timeout, has_quarantine);
            advice.extend(refusal.map(|cause| format!("no lock can be had there: {cause}")));
            let mut object = facts.object();
            object["node"] = name.into();
            object["advice"] = json!(advice);
            self.objects.push(object);
            let advice = advice.into_iter().map(|text| format!("{name}: {text}"));
            self.advice.extend(advice);
            self.rows.push([
                name.to_owned(),
                facts.version.clone(),
                facts.role().to_owned(),
                facts.persistence.name().to_owned(),
                facts.eviction.clone(),
                facts.clock_text(),
                facts.latency_text(),
            ]);
        }
    }

    fn add_absent(&mut self, absent: &Absent) {
        let (name, cause) = (&absent.node, &absent.cause);
        let advice = advice::of_absent(absent.trouble);
        let object = json!({ "node": name, "error": cause, "advice": [advice] });
        self.objects.push(object);
        self.advice.push(format!("{absent}: {advice}"));
        let mut row = [const { String::new() }; 7].map(|_| "-".to_owned());
        row[0].clone_from(name);
        row[1].clone_from(cause);
        self.rows.push(row);
    }

    fn add_trials(&mut self, trials: std::result::Result<Vec<Trial>, redguard::Error>) {
        match trials {
            Ok(trials) => {
                for trial in trials {
                    if let Err(error) = &trial.result {
                        self.advice
                            .push(format!("no {} can be had: {error}", trial.kind));
                    }
                    self.trials.push(trial.text());
                }
            }
            Err(error) => self.advice.push(format!("no trial lock: {error}")),
        }
    }

    fn write(&self, output: Output) -> Result<()> {
        if output.json {
            for object in &self.objects {
                output.tell("", object)?;
            }
            let last = json!({ "trials": self.trials, "advice": self.advice, "well": self.advice.is_empty() });
            output.tell("", &last)?;
            return Ok(());
        }
        let mut text = table(COLUMNS, &self.rows).join("\n");
        text += "\n\n";
        if !self.trials.is_empty() {
            text += &format!("Trial: {}\n\n", self.trials.join(", "));
        }
        if self.advice.is_empty() {
            text += "All is well.\n";
        } else {
            text += "To change:\n";
            for advice in &self.advice {
                text += &format!("  {advice}\n");
            }
        }
        Ok(output.write(&text)?)
    }
}
