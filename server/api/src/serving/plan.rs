//! A service, compiled: which rows of which views, which transforms in which order, which outputs.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::http::HeaderValue;
use eadem_query::{RowTransform, Validation};
use eadem_registry::model::{BoundTo, ResolvedService, ViewRef, ViewVersion, required_key_name};
use eadem_semantics::Lifetime;
use eadem_values::{DataType, Digest, Value};
use serde_json::Value as Json;

use super::meaning::{lifetime, validation};
use super::rows::Transforms;
use super::run::ServeError;

/// A service ready to be served, with one [`Transforms`]: what was loaded of it is kept. Nodes stand in an order in which each
/// can be computed from earlier ones.
#[derive(Debug)]
pub struct ServingPlan {
    /// What it was compiled from.
    pub service: Arc<ResolvedService>,
    pub(crate) nodes: Vec<Node>,
    /// The reads of rows, one per view.
    pub(crate) reads: Vec<ViewRead>,
    /// By which keys rows are read: views that are read by the same ones share them.
    pub(crate) key_sets: Vec<KeySet>,
    pub(crate) outputs: Vec<Output>,
    /// What replies say of what is deprecated.
    pub(crate) deprecation: Option<Deprecation>,
}

/// Headers of replies that rest on something deprecated: made once, not for every request.
#[derive(Debug, Clone)]
pub(crate) struct Deprecation {
    /// `Deprecation`, RFC 9745: since when, the earliest of all.
    pub(crate) since: HeaderValue,
    /// `Warning`: what, and what to do instead.
    pub(crate) warning: HeaderValue,
}

impl Deprecation {
    fn of(service: &ResolvedService) -> Option<Self> {
        /// Bytes of a header that proxies still let through.
        const TEXT_BYTES_MAX: usize = 1_000;
        let of_views = service.views.values().filter_map(|view| view.mark.as_ref());
        let since_us = service.mark.iter().chain(of_views).map(|mark| mark.at_us).min()?;
        let text: String = service
            .deprecations()
            .join("; ")
            .chars()
            .map(|character| match character {
                '"' | '\\' => '\'',
                ' '..='~' => character,
                _ => '?',
            })
            .take(TEXT_BYTES_MAX)
            .collect();
        Some(Self {
            since: HeaderValue::from_str(&format!("@{}", since_us.div_euclid(1_000_000))).ok()?,
            warning: HeaderValue::from_str(&format!("299 eadem \"{text}\"")).ok()?,
        })
    }
}

/// The rows of one view, for every role that it is wanted for.
#[derive(Debug)]
pub(crate) struct ViewRead {
    /// Positions in `nodes`.
    pub(crate) nodes: Vec<usize>,
    /// A position in `key_sets`.
    pub(crate) key_set: usize,
}

/// For each role, positions in `service.keys`, in the entity's order of join keys.
pub(crate) type KeySet = Vec<Vec<usize>>;

#[derive(Debug)]
pub(crate) enum Node {
    Stored(StoredNode),
    OnDemand(OnDemandNode),
}

impl Node {
    pub(crate) fn view(&self) -> &Arc<ViewVersion> {
        match self {
            Self::Stored(node) => &node.view,
            Self::OnDemand(node) => &node.view,
        }
    }

    /// What runs in a request, if anything does.
    pub(crate) fn component(&self) -> Option<&Component> {
        match self {
            Self::Stored(node) => Some(&node.component).filter(|_| node.runs_on_read),
            Self::OnDemand(node) => Some(&node.component),
        }
    }
}

/// The transform of a view, as requests run it.
#[derive(Debug)]
pub(crate) struct Component {
    digest: Digest,
    pub(crate) validation: Validation,
    loaded: OnceLock<Arc<dyn RowTransform>>,
}

impl Component {
    fn of(view: &ViewVersion) -> Self {
        Self { digest: view.transform, validation: validation(view), loaded: OnceLock::new() }
    }

    /// The transform. The first request that needs it has it loaded, and waits for that until its deadline.
    pub(crate) async fn transform(
        &self,
        transforms: &dyn Transforms,
        deadline: Option<Instant>,
    ) -> Result<&dyn RowTransform, ServeError> {
        if let Some(loaded) = self.loaded.get() {
            return Ok(loaded.as_ref());
        }
        let loading = transforms.load(&self.digest);
        let loaded = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline.into(), loading).await.map_err(|_| ServeError::Late)?,
            None => loading.await,
        };
        let loaded = loaded?;
        Ok(self.loaded.get_or_init(|| loaded).as_ref())
    }
}

/// The rows of one view, read for the keys of one role.
#[derive(Debug)]
pub(crate) struct StoredNode {
    pub(crate) view: Arc<ViewVersion>,
    pub(crate) lifetime: Lifetime,
    /// Positions in `service.keys`, in the entity's order of join keys.
    pub(crate) keys: Vec<usize>,
    /// What the stored bytes decode to: the features, or the bound inputs of an `on_read` view.
    pub(crate) stored_types: Vec<DataType>,
    pub(crate) runs_on_read: bool,
    pub(crate) component: Component,
}

/// A transform over earlier nodes and the request.
#[derive(Debug)]
pub(crate) struct OnDemandNode {
    pub(crate) view: Arc<ViewVersion>,
    pub(crate) inputs: Vec<OnDemandSource>,
    pub(crate) component: Component,
}

#[derive(Debug)]
pub(crate) enum OnDemandSource {
    /// Feature `feature` of node `node`.
    Node {
        node: usize,
        feature: usize,
    },
    /// Position in `service.request_fields`.
    Request(usize),
    RequestTimestamp,
    Literal(Value),
}

#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) name: String,
    /// The name as the beginning of a member of JSON: `"name":`.
    pub(crate) json_name: Vec<u8>,
    pub(crate) node: usize,
    pub(crate) feature: usize,
    pub(crate) default: Option<Value>,
}

/// A resolved service that does not hold together. The registry refuses such at `apply`; seeing one here is a fault of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("service cannot be compiled: {0}")]
pub struct PlanError(String);

impl ServingPlan {
    /// Whether a request for it runs a transform.
    pub(crate) fn computes(&self) -> bool {
        self.nodes.iter().any(|node| node.component().is_some())
    }

    /// The components that run in requests for it.
    pub(crate) fn components(&self) -> BTreeSet<Digest> {
        let components = self.nodes.iter().filter_map(Node::component);
        components.map(|component| component.digest).collect()
    }

    /// The same over the tables that were read at an instant, in µs since the epoch, for views whose placement has been
    /// switched since; `None`: there are none.
    ///
    /// # Errors
    /// As [`ServingPlan::compile`].
    pub fn as_placed_at(&self, at_us: i64) -> Result<Option<Self>, PlanError> {
        let service = self.service.as_placed_at(at_us);
        service.map(|service| Self::compile(Arc::new(service))).transpose()
    }

    /// Compiles a service.
    ///
    /// # Errors
    /// A reference to a view, feature, key or request field that the service does not carry.
    pub fn compile(service: Arc<ResolvedService>) -> Result<Self, PlanError> {
        let mut compiler = Compiler { service: &service, nodes: Vec::new(), node_of: HashMap::new(), open: Vec::new() };
        let mut outputs = Vec::with_capacity(service.entries.len());
        for entry in &service.entries {
            let node = compiler.node(&entry.view, entry.role.as_deref())?;
            let view = compiler.nodes[node].view();
            outputs.push(Output {
                name: entry.output_name.clone(),
                json_name: format!("{}:", Json::from(entry.output_name.as_str())).into_bytes(),
                node,
                feature: feature_position(view, &entry.feature)?,
                default: view.defaults.get(&entry.feature).cloned(),
            });
        }
        let nodes = compiler.nodes;
        let (reads, key_sets) = reads_of(&nodes);
        let deprecation = Deprecation::of(&service);
        Ok(Self { service, nodes, reads, key_sets, outputs, deprecation })
    }
}

fn reads_of(nodes: &[Node]) -> (Vec<ViewRead>, Vec<KeySet>) {
    let mut of_views: Vec<(&ViewRef, Vec<usize>, KeySet)> = Vec::new();
    for (position, node) in nodes.iter().enumerate() {
        let Node::Stored(stored) = node else { continue };
        match of_views.iter_mut().find(|(view, ..)| **view == stored.view.id) {
            Some((_, positions, keys)) => {
                positions.push(position);
                keys.push(stored.keys.clone());
            }
            None => of_views.push((&stored.view.id, vec![position], vec![stored.keys.clone()])),
        }
    }
    let mut key_sets: Vec<KeySet> = Vec::new();
    let reads = of_views.into_iter().map(|(_, nodes, keys)| {
        let known = key_sets.iter().position(|known| *known == keys);
        let key_set = known.unwrap_or_else(|| {
            key_sets.push(keys);
            key_sets.len() - 1
        });
        ViewRead { nodes, key_set }
    });
    let reads = reads.collect();
    (reads, key_sets)
}

fn feature_position(view: &ViewVersion, feature: &str) -> Result<usize, PlanError> {
    let outputs = &view.description.outputs;
    outputs
        .iter()
        .position(|output| output.name == feature)
        .ok_or_else(|| PlanError(format!("{} has no feature `{feature}`", view.id)))
}

struct Compiler<'a> {
    service: &'a ResolvedService,
    nodes: Vec<Node>,
    node_of: HashMap<(ViewRef, Option<String>), usize>,
    open: Vec<ViewRef>,
}

impl Compiler<'_> {
    /// The position of the node that computes `view` for `role`, compiling it and what it needs first.
    fn node(&mut self, view: &ViewRef, role: Option<&str>) -> Result<usize, PlanError> {
        let identity = (view.clone(), role.map(str::to_owned));
        if let Some(node) = self.node_of.get(&identity) {
            return Ok(*node);
        }
        if self.open.contains(view) {
            return Err(PlanError(format!("{view} depends on itself")));
        }
        let version = self.service.views.get(view).ok_or_else(|| PlanError(format!("{view} is not part of it")))?;
        let version = Arc::clone(version);
        self.open.push(view.clone());
        let node = match &version.stored {
            Some(_) => Node::Stored(self.stored(&version, role)?),
            None => Node::OnDemand(self.on_demand(&version)?),
        };
        self.open.pop();
        self.nodes.push(node);
        let position = self.nodes.len() - 1;
        self.node_of.insert(identity, position);
        Ok(position)
    }

    fn stored(&self, view: &Arc<ViewVersion>, role: Option<&str>) -> Result<StoredNode, PlanError> {
        let stored = view.stored.as_ref().ok_or_else(|| PlanError(format!("{} has no entity", view.id)))?;
        let key_position = |name: String| {
            let found = self.service.keys.iter().position(|key| key.name == name);
            found.ok_or_else(|| PlanError(format!("key `{name}` of {} is not part of it", view.id)))
        };
        let names = stored.entity.keys.iter().map(|key| required_key_name(&stored.entity, &key.name, role));
        let runs_on_read = stored.deployment.placement == eadem_registry::model::Placement::OnRead;
        let stored_fields = if runs_on_read { &view.description.inputs } else { &view.description.outputs };
        Ok(StoredNode {
            view: Arc::clone(view),
            lifetime: lifetime(stored),
            keys: names.map(key_position).collect::<Result<_, _>>()?,
            stored_types: stored_fields.iter().map(|field| field.data_type).collect(),
            runs_on_read,
            component: Component::of(view),
        })
    }

    fn on_demand(&mut self, view: &Arc<ViewVersion>) -> Result<OnDemandNode, PlanError> {
        let mut inputs = Vec::with_capacity(view.bindings.len());
        for binding in &view.bindings {
            inputs.push(match &binding.from {
                BoundTo::Feature(upstream) => {
                    let node = self.node(&upstream.view, upstream.role.as_deref())?;
                    let feature = feature_position(self.nodes[node].view(), &upstream.feature)?;
                    OnDemandSource::Node { node, feature }
                }
                BoundTo::Request(name) => {
                    let position = self.service.request_fields.iter().position(|field| &field.name == name);
                    let position =
                        position.ok_or_else(|| PlanError(format!("request field `{name}` is not part of it")))?;
                    OnDemandSource::Request(position)
                }
                BoundTo::RequestTimestamp => OnDemandSource::RequestTimestamp,
                BoundTo::Literal(value) => OnDemandSource::Literal(value.clone()),
                BoundTo::Column(column) => {
                    return Err(PlanError(format!("on-demand view {} is bound to column `{column}`", view.id)));
                }
            });
        }
        Ok(OnDemandNode { view: Arc::clone(view), inputs, component: Component::of(view) })
    }
}
