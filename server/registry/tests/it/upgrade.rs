//! A registry that an earlier version of this program has left.

use std::path::{Path, PathBuf};

use eadem_registry::{Registry, RegistryAddress, Search};
use sqlx::AnyPool;
use sqlx::migrate::Migrator;

use crate::support::{POSTGRES, a_registry_at};

const SCHEMA: &str = "upgraded";

/// The migrations of the database that the suite runs on, by number.
fn migrations() -> Vec<(u32, PathBuf)> {
    let dialect = if std::env::var_os(POSTGRES).is_some() { "postgres" } else { "sqlite" };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(dialect);
    let number = |file: &Path| file.file_name().unwrap().to_str().unwrap()[..4].parse().unwrap();
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut migrations: Vec<(u32, PathBuf)> = files.map(|file| (number(&file), file)).collect();
    migrations.sort();
    migrations
}

/// The database without its registry, and where that will be.
async fn database(folder: &Path) -> (AnyPool, RegistryAddress) {
    sqlx::any::install_default_drivers();
    let file = folder.join("registry.db");
    match std::env::var(POSTGRES) {
        Ok(url) => {
            let pool = AnyPool::connect(&format!("{url}?options[search_path]={SCHEMA}")).await.unwrap();
            sqlx::query("CREATE SCHEMA upgraded").execute(&pool).await.unwrap();
            (pool, a_registry_at(SCHEMA))
        }
        Err(_) => {
            let pool = AnyPool::connect(&format!("sqlite://{}?mode=rwc", file.display())).await.unwrap();
            (pool, a_registry_at(file.to_str().unwrap()))
        }
    }
}

async fn migrate(folder: &Path, pool: &AnyPool) -> Result<(), sqlx::migrate::MigrateError> {
    Migrator::new(folder).await.unwrap().run(pool).await
}

#[tokio::test]
async fn an_earlier_registry_is_brought_up_to_date_also_after_a_step_that_broke_off() {
    let folder = tempfile::tempdir().unwrap();
    let (pool, address) = database(folder.path()).await;
    let earlier = folder.path().join("earlier");
    std::fs::create_dir(&earlier).unwrap();
    let mut migrations = migrations().into_iter();
    // SQLite's second step adds a column; on PostgreSQL the first that there is makes all tables.
    let first_steps = if std::env::var_os(POSTGRES).is_some() { 1 } else { 2 };
    for (_, file) in migrations.by_ref().take(first_steps) {
        std::fs::copy(&file, earlier.join(file.file_name().unwrap())).unwrap();
    }
    migrate(&earlier, &pool).await.unwrap();
    let shape_id: i64 =
        sqlx::query_scalar("INSERT INTO entity_shape (name, digest) VALUES ($1, $2) RETURNING shape_id")
            .bind("aircraft")
            .bind([7_u8; 32].as_slice())
            .fetch_one(&pool)
            .await
            .unwrap();
    let statements = [
        "INSERT INTO entity_key (shape_id, position, name, key_type) VALUES ($1, 0, 'tailnum', 'utf8')",
        "INSERT INTO entity (name, shape_id, doc, owner) VALUES ('aircraft', $1, 'By its tail number.', 'ops')",
    ];
    for statement in statements {
        sqlx::query(statement).bind(shape_id).execute(&pool).await.unwrap();
    }

    // The next step breaks off at its end.
    let (_, next) = migrations.next().unwrap();
    let text = std::fs::read_to_string(&next).unwrap() + "\nINSERT INTO no_such_table VALUES (1);\n";
    std::fs::write(earlier.join(next.file_name().unwrap()), text).unwrap();
    migrate(&earlier, &pool).await.unwrap_err();
    pool.close().await;

    let registry = Registry::connect(&address).await.unwrap();
    let entity = registry.entity("aircraft").await.unwrap();
    assert_eq!((entity.keys[0].name.as_str(), entity.about.owner.as_str()), ("tailnum", "ops"));
    let search = Search { text: "tail number", kinds: &[], limit: 5 };
    assert_eq!(registry.search(&search).await.unwrap().hits.len(), 1, "what was there is indexed");
    assert!(registry.verify_trail(None).await.unwrap().faults.is_empty());
    registry.close().await;
    Registry::connect(&address).await.unwrap();
}
