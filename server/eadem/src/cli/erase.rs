//! `erase`: entities leave every store.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use eadem_values::{KeyType, KeyValue};
use serde_json::{Map, Value as Json, json};

use super::Context;
use super::jobs::{follow, job_text};
use crate::client::encoded;

/// Erase entities everywhere, up to an instant, for good.
#[derive(Debug, Args)]
pub(crate) struct Erase {
    /// The entity type.
    #[arg(long, value_name = "TYPE")]
    entity: String,
    /// A join key of the entity: --key tailnum=N14228. An entity with several keys takes one --key for each.
    #[arg(long = "key", value_name = "NAME=VALUE", required_unless_present = "file")]
    keys: Vec<String>,
    /// Many entities: CSV whose first line names the join keys.
    #[arg(long, conflicts_with = "keys")]
    file: Option<PathBuf>,
    /// Rows with an event time up to (and with) this instant (RFC 3339) are erased, also those that arrive later; default: now.
    #[arg(long, value_name = "TIME")]
    up_to: Option<String>,
}

impl Erase {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client().await?;
        let entity: Json = client.get(&format!("/registry/entities/{}", encoded(&self.entity))).await?;
        let types = key_types(&entity)?;
        let keys = match &self.file {
            Some(file) => keys_of_file(file, &types)?,
            None => vec![key_of_pairs(&self.keys, &types)?],
        };
        let mut request = json!({ "entity": self.entity, "keys": keys });
        if let Some(up_to) = &self.up_to {
            request["up_to"] = json!(up_to);
        }
        let job = client.post("/erasures", &request).await?;
        let job = follow(context, &client, job).await?;
        context.printer.result(&job, job_text)
    }
}

/// The entity's join keys, in declared order.
fn key_types(entity: &Json) -> anyhow::Result<Vec<(String, KeyType)>> {
    let keys = entity["keys"].as_array().context("the server does not say which keys the entity has")?;
    let key = |key: &Json| {
        let name = key["name"].as_str().context("a key without a name")?.to_owned();
        Ok((name, serde_json::from_value(key["key_type"].clone())?))
    };
    keys.iter().map(key).collect()
}

fn key_of_pairs(pairs: &[String], types: &[(String, KeyType)]) -> anyhow::Result<Map<String, Json>> {
    let mut key = Map::new();
    for pair in pairs {
        let (name, text) = pair.split_once('=').with_context(|| format!("--key takes name=value, found `{pair}`"))?;
        let value = value_of(name, text, types)?;
        if key.insert(name.to_owned(), value).is_some() {
            bail!("--key {name} stands twice; --file takes many entities");
        }
    }
    Ok(key)
}

fn value_of(name: &str, text: &str, types: &[(String, KeyType)]) -> anyhow::Result<Json> {
    let Some((_, key_type)) = types.iter().find(|(known, _)| known == name) else {
        let known: Vec<&str> = types.iter().map(|(name, _)| name.as_str()).collect();
        bail!("`{name}` is no key of the entity; its keys are {}", known.join(", "));
    };
    Ok(KeyValue::from_text(name, *key_type, text)?.to_json())
}

fn keys_of_file(file: &Path, types: &[(String, KeyType)]) -> anyhow::Result<Vec<Map<String, Json>>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let place = |number: usize| format!("{}:{}", file.display(), number + 1);
    let (_, head) =
        lines.next().with_context(|| format!("{} is empty; its first line names the keys", file.display()))?;
    let names = fields_of(head).with_context(|| place(0))?;
    let mut keys = Vec::new();
    for (number, line) in lines {
        let fields = fields_of(line).with_context(|| place(number))?;
        if fields.len() != names.len() {
            bail!("{}: {} values for {} keys", place(number), fields.len(), names.len());
        }
        let value = |(name, field): (&String, &String)| {
            let value = value_of(name, field, types).with_context(|| place(number))?;
            Ok((name.clone(), value))
        };
        keys.push(names.iter().zip(&fields).map(value).collect::<anyhow::Result<_>>()?);
    }
    if keys.is_empty() {
        bail!("{} names no entity", file.display());
    }
    Ok(keys)
}

/// The fields of a line of CSV: separated by commas, in quotes where they hold one; a quote in them is doubled.
fn fields_of(line: &str) -> anyhow::Result<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = line.trim_end_matches('\r');
    loop {
        let Some(quoted) = rest.strip_prefix('"') else {
            let (field, more) = rest.split_once(',').map_or((rest, None), |(field, more)| (field, Some(more)));
            fields.push(field.to_owned());
            match more {
                Some(more) => rest = more,
                None => return Ok(fields),
            }
            continue;
        };
        let mut field = String::new();
        let mut after = quoted;
        loop {
            let (part, more) = after.split_once('"').context("a quote that does not end")?;
            field.push_str(part);
            match more.strip_prefix('"') {
                Some(more) => {
                    field.push('"');
                    after = more;
                }
                None => {
                    after = more;
                    break;
                }
            }
        }
        fields.push(field);
        match after.strip_prefix(',') {
            Some(more) => rest = more,
            None if after.is_empty() => return Ok(fields),
            None => bail!("what follows a quoted value is no comma"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn fields_may_hold_commas_and_quotes() {
        assert_eq!(fields_of("a,b,").unwrap(), ["a", "b", ""]);
        assert_eq!(fields_of("\"a,\"\"b\"\"\",c\r").unwrap(), ["a,\"b\"", "c"]);
        assert!(fields_of("\"a").is_err());
        assert!(fields_of("\"a\"b").is_err());
    }

    #[test]
    fn keys_have_the_types_of_their_entity() {
        let types = [("tail".to_owned(), KeyType::Utf8), ("year".to_owned(), KeyType::Int64)];
        let key = key_of_pairs(&["tail=N=1".to_owned(), "year=2013".to_owned()], &types).unwrap();
        assert_eq!(Json::Object(key), json!({ "tail": "N=1", "year": 2013 }));
        for (pairs, said) in [(&["tail"][..], "name=value"), (&["x=1"], "is no key"), (&["year=x"], "must be an int64")]
        {
            let pairs: Vec<String> = pairs.iter().map(|pair| (*pair).to_owned()).collect();
            let refused = format!("{:#}", key_of_pairs(&pairs, &types).unwrap_err());
            assert!(refused.contains(said), "{refused}");
        }
    }
}
