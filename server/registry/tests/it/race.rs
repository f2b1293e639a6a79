//! Many processes apply at once, and some of them are killed: what was acknowledged is there, nobody's change is lost, and
//! the history is one line, and the trail of it all verifies.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use eadem_registry::{Registry, RegistryError};

use crate::support::{Company, FEATURES, NOW_US, PROJECT, a_registry_at, company, inspector, parse};

const ADDRESS: &str = "EADEM_TEST_RACE_ADDRESS";
const NUMBER: &str = "EADEM_TEST_RACE_NUMBER";
const PROCESSES: usize = 8;
const APPLIES_EACH: usize = 8;
/// Applies after which the next of the processes to be killed is killed.
const KILLED_AFTER: [usize; 5] = [2, 5, 9, 14, 20];

/// Definitions in which the shared entity has these tags and the process's own entity has that documentation.
fn definitions(tags: &BTreeSet<String>, process: usize, turn: usize) -> eadem_registry::definitions::Definitions {
    let tags: Vec<String> = tags.iter().map(|tag| format!("\"{tag}\"")).collect();
    let shared = format!("keys = {{ tailnum = \"utf8\" }}\ntags = [{}]", tags.join(", "));
    let project = PROJECT.replace("keys = { tailnum = \"utf8\" }", &shared);
    let own = format!("\n[entity.of_{process}]\nkeys = {{ id = \"int64\" }}\ndoc = \"turn {turn}\"\n");
    parse(&[("eadem.toml", &(project + &own)), ("features/all.toml", FEATURES)]).unwrap()
}

/// One process of the race: adds a tag of its own to what everybody changes, and changes what only it changes.
#[tokio::test]
#[ignore = "run by the_race, several times at once"]
async fn a_process_of_the_race() {
    let Ok(address) = std::env::var(ADDRESS) else { return };
    let process: usize = std::env::var(NUMBER).unwrap().parse().unwrap();
    let registry = Registry::connect(&a_registry_at(&address)).await.unwrap();
    let transforms = serde_json::from_str::<BTreeMap<String, eadem_values::Digest>>(
        &std::env::var("EADEM_TEST_RACE_TRANSFORMS").unwrap(),
    )
    .unwrap();
    let transforms = transforms
        .into_iter()
        .map(|(folder, digest)| (eadem_registry::definitions::TransformReference::Folder(folder), digest))
        .collect();
    for turn in 0..APPLIES_EACH {
        let applied = loop {
            let mut tags: BTreeSet<String> =
                registry.entity("aircraft").await.unwrap().about.tags.into_iter().collect();
            tags.insert(format!("t{process}-{turn}"));
            let plan = registry.plan(&definitions(&tags, process, turn), &transforms, &inspector()).await.unwrap();
            // What was read before the plan may be old; then the plan takes somebody's tag away, and must not be applied.
            let now: BTreeSet<String> = registry.entity("aircraft").await.unwrap().about.tags.into_iter().collect();
            if !now.is_subset(&tags) {
                continue;
            }
            match registry.apply(&plan, NOW_US).await {
                Ok(applied) => break applied,
                Err(RegistryError::Stale { .. }) => {}
                Err(error) => panic!("{error:?}"),
            }
        };
        println!("applied {process} {turn} {}", applied.definitions_revision);
    }
}

fn start(process: usize, address: &str, transforms: &str, heard: mpsc::Sender<(usize, usize, u64)>) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["race::a_process_of_the_race", "--exact", "--ignored", "--nocapture"])
        .env(ADDRESS, address)
        .env(NUMBER, process.to_string())
        .env("EADEM_TEST_RACE_TRANSFORMS", transforms)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let Some((_, numbers)) = line.split_once("applied ") else { continue };
            let numbers: Vec<u64> = numbers.split(' ').filter_map(|number| number.parse().ok()).collect();
            let [process, turn, revision] = numbers[..] else { continue };
            let _nobody_listens = heard.send((process as usize, turn as usize, revision));
        }
    });
    child
}

#[tokio::test(flavor = "multi_thread")]
async fn the_race() {
    let company_registry = Company::found().await;
    company_registry.apply(&company()).await;
    let transforms: BTreeMap<String, String> = company_registry
        .transforms
        .iter()
        .filter_map(|(reference, digest)| match reference {
            eadem_registry::definitions::TransformReference::Folder(folder) => {
                Some((folder.clone(), digest.to_string()))
            }
            _ => None,
        })
        .collect();
    let transforms = serde_json::to_string(&transforms).unwrap();
    let address = company_registry.address_text();
    let (say, heard) = mpsc::channel();
    let mut children: Vec<Child> =
        (0..PROCESSES).map(|process| start(process, &address, &transforms, say.clone())).collect();
    drop(say);
    let mut acknowledged = Vec::new();
    let mut killed = 0;
    while let Ok(applied) = heard.recv() {
        acknowledged.push(applied);
        if KILLED_AFTER.get(killed) == Some(&acknowledged.len()) {
            children[killed].kill().unwrap();
            killed += 1;
        }
    }
    let ended: Vec<bool> = children.iter_mut().map(|child| child.wait().unwrap().success()).collect();
    assert_eq!(killed, KILLED_AFTER.len(), "{} applies were acknowledged", acknowledged.len());
    assert!(ended[killed..].iter().all(|ended| *ended), "those that were not killed came to their end: {ended:?}");

    let registry = company_registry.another_process().await;
    let tags: BTreeSet<String> = registry.entity("aircraft").await.unwrap().about.tags.into_iter().collect();
    let is_lost = |(process, turn, _): &&(usize, usize, u64)| !tags.contains(&format!("t{process}-{turn}"));
    let lost: Vec<&(usize, usize, u64)> = acknowledged.iter().filter(is_lost).collect();
    for process in killed..PROCESSES {
        let own = registry.entity(&format!("of_{process}")).await.unwrap();
        assert_eq!(own.about.doc, format!("turn {}", APPLIES_EACH - 1));
    }
    // One line: every revision is one apply, and nobody was told the number of another's.
    let mut told: Vec<u64> = acknowledged.iter().map(|(_, _, revision)| *revision).collect();
    told.sort_unstable();
    let told_twice = told.windows(2).filter(|pair| pair[0] == pair[1]).count();
    let mut recorded = BTreeSet::new();
    let mut since = 0;
    loop {
        let changes = registry.definition_changes(since).await.unwrap();
        let Some(last) = changes.last() else { break };
        since = last.definitions_revision;
        recorded.extend(changes.iter().map(|change| change.definitions_revision));
    }
    let current = registry.definitions_revision().await.unwrap();
    let line: BTreeSet<u64> = (1..=current).collect();
    let breaks = recorded.symmetric_difference(&line).count() + told.iter().filter(|told| !line.contains(told)).count();
    let verdict = registry.verify_trail(None).await.unwrap();
    let faults = lost.len() + told_twice + breaks + verdict.faults.len();
    println!("R2: cases={} faults={faults}", PROCESSES * APPLIES_EACH);
    assert_eq!(faults, 0, "lost: {lost:?}; told: {told:?}; recorded: {recorded:?}; at {current}; {verdict:?}");
    assert!(verdict.entries >= current, "every apply left something behind: {verdict:?}");
}
