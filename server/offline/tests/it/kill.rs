//! A process that is killed while it changes a table: readers beside it see the table before or after, and the same job,
//! begun again, ends in what an undisturbed one does.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use eadem_offline::MemoryLedger;

use crate::dice::{Dice, seed};
use crate::faults::{DEEDS, Deed, Scene};
use crate::support::cases;

const ROWS: usize = 3_000;
const VARIABLE_FOLDER: &str = "EADEM_TEST_FOLDER";
const VARIABLE_STORE: &str = "EADEM_TEST_STORE";
const VARIABLE_DEED: &str = "EADEM_TEST_DEED";
const BEGINS: &str = "the deed begins";

#[test]
#[ignore = "run by other tests, as a process of its own"]
fn act_in_a_child_process() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let deed = DEEDS[variable(VARIABLE_DEED).parse::<usize>().unwrap()];
    let scene = Scene::at(Path::new(&variable(VARIABLE_FOLDER)));
    let store = scene.open(&variable(VARIABLE_STORE));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    std::io::stdout().write_all(format!("\n{BEGINS}\n").as_bytes()).unwrap();
    runtime.block_on(scene.act(deed, &store, Arc::new(MemoryLedger::default()))).unwrap();
}

/// A child that has begun.
fn begin(folder: &Path, store: &str, deed: usize) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::act_in_a_child_process", "--ignored", "--nocapture"])
        .env(VARIABLE_FOLDER, folder)
        .env(VARIABLE_STORE, store)
        .env(VARIABLE_DEED, deed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.map(Result::unwrap).any(|line| line == BEGINS), "the child never began");
    child
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_instant_a_table_is_as_before_or_as_after() {
    let seed = seed();
    let (kills, mut dice) = (cases(3, 60), Dice(seed));
    // On a busy machine one may come too late, all of them never.
    let mut met = 0;
    for (number, deed) in DEEDS.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let scene = Scene::prepare(folder.path(), deed, ROWS).await;
        let before = scene.rows(&scene.open("prepared")).await;
        let undisturbed = scene.copy("undisturbed");
        let began = Instant::now();
        assert!(begin(folder.path(), "undisturbed", number).wait().unwrap().success());
        let takes = began.elapsed();
        let after = scene.rows(&undisturbed).await;
        let version = scene.version(&undisturbed).await;
        assert_eq!(before == after, matches!(deed, Deed::Compact | Deed::Vacuum));
        for kill in 0..kills {
            // When it strikes decides nothing: whatever it meets must be whole.
            let strikes_after = takes.mul_f64(dice.share());
            let name = format!("kill-{kill}");
            let store = scene.copy(&name);
            let mut child = begin(folder.path(), &name, number);
            let began = Instant::now();
            let context = format!("{deed:?}, seed {seed}, kill {kill} after {strikes_after:?}");
            while began.elapsed() < strikes_after {
                let visible = scene.rows(&store).await;
                assert!(visible == before || visible == after, "{context}: a reader saw a part");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            met += usize::from(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
            let visible = scene.rows(&store).await;
            assert!(visible == before || visible == after, "{context}: a part is visible");
            scene.act(deed, &store, Arc::new(MemoryLedger::default())).await.unwrap();
            assert_eq!(scene.rows(&store).await, after, "{context}");
            assert_eq!(scene.version(&store).await, version, "{context}: not exactly one commit");
            std::fs::remove_dir_all(scene.root(&name)).unwrap();
        }
    }
    assert!(met > 0, "every kill came too late");
    // For the bar, which adds such lines up; whatever differed would have ended the test.
    println!("H9: kills={met} faults=0");
}
