//! A LoRA adapter in PEFT's layout (Hu et al., "LoRA", 2021), merged into the weights when they are read:
//! `W + scale B A` with `scale = alpha / r`, or `alpha / sqrt r` where the configuration asks for it.
//!
//! The adapter's files, adapter_config.json and adapter_model.safetensors, lie in the model directory itself or in its
//! folder `adapter/`, beside the files of the base model. Tensors are named after the module that they change, behind
//! `base_model.model.`; whether a name has the prefix of its family (`model.`, `bert.`, `roberta.`) does not matter.
//! What the configuration asks for beyond plain LoRA on linear layers is refused.

use super::ModelError;
use super::files::{read_json, required};
use super::tensors::Tensors;
use crate::compute::add_low_rank;
use crate::compute::cpu::Level;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const FOLDER: &str = "adapter";

/// The two files of the adapter, where the directory has one.
pub fn files(dir: &Path) -> Result<Option<[PathBuf; 2]>, ModelError> {
    let folders = [dir.to_path_buf(), dir.join(FOLDER)];
    match folders.each_ref().map(|folder| folder.join(CONFIG).is_file()) {
        [false, false] => Ok(None),
        [true, true] => Err(ModelError::Invalid {
            path: dir.to_path_buf(),
            what: format!("it holds two adapters: {CONFIG} and {FOLDER}/{CONFIG}"),
        }),
        [own, _] => {
            let [root, inner] = folders;
            let folder = if own { root } else { inner };
            Ok(Some([folder.join(CONFIG), required(folder.join(WEIGHTS))?]))
        }
    }
}

/// Fails where a directory holds an adapter alone, with the name of the base model that it lacks.
pub fn beside_its_base(dir: &Path) -> Result<(), ModelError> {
    if dir.join("config.json").is_file() || !dir.join(CONFIG).is_file() {
        return Ok(());
    }
    let path = dir.join(CONFIG);
    let parsed = read_json(&path)?;
    let base = parsed
        .get("base_model_name_or_path")
        .and_then(Value::as_str)
        .unwrap_or("unknown");
    let what = format!("the files of its base model \"{base}\" are not beside it: config.json is missing");
    Err(ModelError::Invalid { path, what })
}

/// The two factors of one weight's change.
struct Factors {
    a: String,
    b: String,
    rank: usize,
}

/// An adapter: which weights it changes, and by what.
pub struct Adapter {
    tensors: Tensors,
    /// By the name of the weight without its family's prefix.
    factors: BTreeMap<String, Factors>,
    alpha: f64,
    root: bool,
}

/// What adapter_config.json says.
struct Config {
    rank: usize,
    alpha: f64,
    root: bool,
    /// Names of modules; empty where they are given by a pattern.
    targets: Vec<String>,
}

impl Adapter {
    /// Opens the adapter of a directory, if there is one, and checks its tensors against those of the base model.
    pub fn open(dir: &Path, base: &Tensors) -> Result<Option<Adapter>, ModelError> {
        let Some([config_path, path]) = files(dir)? else {
            return Ok(None);
        };
        let config = Config::read(&config_path)?;
        let tensors = Tensors::open([path.clone()])?;
        let checked = Checked {
            bases: base
                .names()
                .map(|name| (bare(name), base.shape(name).unwrap_or_default()))
                .collect(),
            config: &config,
            tensors: &tensors,
            path: &path,
        };
        let factors = checked.factors()?;
        Ok(Some(Adapter {
            tensors,
            factors,
            alpha: config.alpha,
            root: config.root,
        }))
    }

    /// Adds the adapter's change to the numbers of a weight, if it changes that one.
    pub fn merge(&self, name: &str, numbers: &mut [f32]) -> Result<(), ModelError> {
        let Some(factors) = self.factors.get(bare(name)) else {
            return Ok(());
        };
        let read = |name: &str| match self.tensors.shape(name) {
            Some(shape) => self.tensors.read(name, shape),
            None => Err(ModelError::MissingTensor(name.to_string())),
        };
        let (a, b) = (read(&factors.a)?, read(&factors.b)?);
        let rank = factors.rank as f64;
        let scale = self.alpha / if self.root { rank.sqrt() } else { rank };
        let inputs = a.len() / factors.rank.max(1);
        add_low_rank(Level::detect(), numbers, inputs, &a, &b, scale as f32)?;
        match numbers.iter().all(|number| number.is_finite()) {
            true => Ok(()),
            false => Err(ModelError::NotFinite(format!("{name} with its adapter"))),
        }
    }
}

/// An adapter's tensors while they are compared with its configuration and with the base model.
struct Checked<'a> {
    /// Shapes by the names without their family's prefix.
    bases: BTreeMap<&'a str, &'a [usize]>,
    config: &'a Config,
    tensors: &'a Tensors,
    path: &'a Path,
}

impl Checked<'_> {
    fn invalid(&self, what: String) -> ModelError {
        ModelError::Invalid {
            path: self.path.to_path_buf(),
            what,
        }
    }

    /// The factors of each weight that the adapter changes.
    fn factors(&self) -> Result<BTreeMap<String, Factors>, ModelError> {
        let mut factors = BTreeMap::new();
        let mut reached = BTreeSet::new();
        for name in self.tensors.names() {
            let module = self.module(name)?;
            let Some(target) = self.config.target(module) else {
                let what = format!("tensor \"{name}\" changes a module that target_modules does not name");
                return Err(self.invalid(what));
            };
            reached.insert(target);
            if let Some(stem) = name.strip_suffix(".lora_B.weight") {
                let other = format!("{stem}.lora_A.weight");
                self.tensors.shape(&other).ok_or(ModelError::MissingTensor(other))?;
                continue;
            }
            let own = self.pair(name, module)?;
            factors.insert(format!("{module}.weight"), own);
        }
        let mut targets = self.config.targets.iter();
        if let Some(target) = targets.find(|target| !reached.contains(target.as_str())) {
            let what = format!("no tensor changes \"{target}\", which target_modules names");
            return Err(self.invalid(what));
        }
        match factors.is_empty() {
            true => Err(self.invalid("it changes nothing".to_string())),
            false => Ok(factors),
        }
    }

    /// The module that a tensor changes, without its family's prefix.
    fn module<'n>(&self, name: &'n str) -> Result<&'n str, ModelError> {
        let own = name.strip_prefix("base_model.model.");
        let module = own.and_then(|own| {
            own.strip_suffix(".lora_A.weight")
                .or(own.strip_suffix(".lora_B.weight"))
        });
        let not_linear = || self.invalid(format!("tensor \"{name}\" is not a factor of a linear layer"));
        module.map(bare).ok_or_else(not_linear)
    }

    /// The first factor of a module and the second that belongs to it, in the shapes of the weight that they change.
    fn pair(&self, a: &str, module: &str) -> Result<Factors, ModelError> {
        let b = format!("{}.lora_B.weight", a.trim_end_matches(".lora_A.weight"));
        let name = format!("{module}.weight");
        let Some(shape) = self.bases.get(name.as_str()) else {
            let what = format!("tensor \"{a}\" changes \"{name}\", which the base model lacks");
            return Err(self.invalid(what));
        };
        let [outputs, inputs] = **shape else {
            let what = format!("tensor \"{a}\" changes \"{name}\", which is not a matrix");
            return Err(self.invalid(what));
        };
        let rank = self.config.rank;
        self.tensors.check(a, &[rank, inputs])?;
        self.tensors.check(&b, &[outputs, rank])?;
        Ok(Factors {
            a: a.to_string(),
            b,
            rank,
        })
    }
}

impl Config {
    fn read(path: &Path) -> Result<Config, ModelError> {
        let value = read_json(path)?;
        let field = |name: &str| value.get(name).unwrap_or(&Value::Null);
        let invalid = |what: String| ModelError::Invalid {
            path: path.to_path_buf(),
            what,
        };
        if field("peft_type").as_str() != Some("LORA") {
            let found = field("peft_type").as_str().unwrap_or("none").to_string();
            return Err(unsupported("adapter type", found));
        }
        let bias = field("bias").as_str().unwrap_or("none");
        if bias != "none" {
            return Err(unsupported("adapter option", format!("bias {bias}")));
        }
        // Each changes what a layer computes, unless it is absent, false or empty.
        let refused = [
            "use_dora",
            "use_qalora",
            "fan_in_fan_out",
            "lora_bias",
            "modules_to_save",
            "rank_pattern",
            "alpha_pattern",
            "layer_replication",
            "target_parameters",
            "trainable_token_indices",
            "alora_invocation_tokens",
            "arrow_config",
        ];
        if let Some(name) = refused.into_iter().find(|name| is_set(field(name))) {
            return Err(unsupported("adapter option", name.to_string()));
        }
        // These ways to begin a training change the base weights as well.
        let start = field("init_lora_weights").as_str().unwrap_or_default();
        if ["pissa", "olora", "loftq", "corda"]
            .iter()
            .any(|way| start.to_lowercase().starts_with(way))
        {
            return Err(unsupported("adapter option", format!("init_lora_weights {start}")));
        }
        let rank = field("r").as_u64().filter(|rank| (1..=1 << 16).contains(rank));
        let alpha = field("lora_alpha").as_f64().filter(|alpha| alpha.is_finite());
        let targets = match field("target_modules") {
            Value::Array(names) => names.iter().filter_map(Value::as_str).map(str::to_string).collect(),
            Value::String(_) => Vec::new(),
            _ => return Err(invalid("field \"target_modules\" is missing".to_string())),
        };
        Ok(Config {
            rank: rank.ok_or_else(|| invalid("field \"r\" is missing or not a rank".to_string()))? as usize,
            alpha: alpha.ok_or_else(|| invalid("field \"lora_alpha\" is missing or not a number".to_string()))?,
            root: field("use_rslora").as_bool() == Some(true),
            targets,
        })
    }

    /// The entry of target_modules that a module belongs to: its name, or the end of it.
    fn target(&self, module: &str) -> Option<&str> {
        if self.targets.is_empty() {
            return Some("");
        }
        let fits = |target: &str| {
            let target = bare(target);
            module == target || module.strip_suffix(target).is_some_and(|rest| rest.ends_with('.'))
        };
        self.targets.iter().map(String::as_str).find(|target| fits(target))
    }
}

/// Whether an option asks for something.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
        _ => true,
    }
}

/// A tensor's or module's name without the prefix of its family.
fn bare(name: &str) -> &str {
    let prefixes = ["model.", "bert.", "roberta."];
    prefixes
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))
        .unwrap_or(name)
}

fn unsupported(what: &'static str, found: String) -> ModelError {
    let supported = "LoRA of linear layers, without further options";
    ModelError::Unsupported { what, found, supported }
}
