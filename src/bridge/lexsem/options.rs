//! Options of a training.

use super::{Fusion, Scheme};
use crate::bridge::BridgeError;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// See `docs/LEXSEM.md` for what each was chosen by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    pub scheme: Scheme,
    pub fusion: Fusion,
    /// Share of each document's words, the last ones, that training does not see.
    pub held_out: f64,
    /// Share of the documents that training does not see, of one topic; without it a fifth where there are no pairs,
    /// else none.
    pub unseen: Option<f64>,
    /// How far a query goes from its own vector to what the bridge makes of it; without it half the way where there are
    /// no pairs, else all of it.
    pub strength: Option<f32>,
    /// Pieces and keyword sets made of each passage.
    pub spans: usize,
    pub keywords: usize,
    pub most_queries: usize,
    pub epochs: usize,
    pub batch: usize,
    /// Step length of Adam.
    pub rate: f32,
    /// Temperature of the loss.
    pub tau: f32,
    /// L2 penalty on the rows.
    pub decay: f32,
    /// Chance that a token of a training query is left out in a step.
    pub dropout: f32,
    /// Power of the metric; 0 for none.
    pub whiten: f64,
    pub ridge: f64,
    /// Step length of the map `M` beside the rows; 0 for none.
    pub map_rate: f32,
    /// For the scheme `clr`: the registered masked language model, the fingerprint that it had, and how many of its
    /// weights a text keeps (0 for all, as published).
    pub mlm: Option<String>,
    pub mlm_fingerprint: Option<String>,
    pub vocabulary_top: u32,
    /// Relative loss that sentences and pairs may have at most.
    pub guard: f64,
    pub seed: u64,
    /// 0 for the machine's.
    pub threads: usize,
}

/// Share of the documents that is left out, and how far a query goes, where only synthetic queries can test.
const UNSEEN_OF_SYNTHETIC: f64 = 0.2;
const STRENGTH_OF_SYNTHETIC: f32 = 0.5;

impl Options {
    /// Share of the documents that training does not see. `synthetic`: no pairs test.
    pub fn unseen(&self, synthetic: bool) -> f64 {
        self.unseen.unwrap_or(if synthetic { UNSEEN_OF_SYNTHETIC } else { 0.0 })
    }

    /// How far a query goes to what the bridge makes of it. Of what synthetic queries gain half is believed
    /// (`bridge/prior.rs`), so half the way is gone.
    pub fn strength(&self, synthetic: bool) -> f32 {
        self.strength
            .unwrap_or(if synthetic { STRENGTH_OF_SYNTHETIC } else { 1.0 })
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            scheme: Scheme::Bag,
            fusion: Fusion::Sum,
            held_out: 0.4,
            unseen: None,
            strength: None,
            spans: 6,
            keywords: 3,
            most_queries: 400_000,
            epochs: 10,
            batch: 256,
            rate: 2e-4,
            tau: 0.02,
            decay: 1e-3,
            dropout: 0.5,
            whiten: 0.5,
            ridge: 0.3,
            map_rate: 1e-4,
            mlm: None,
            mlm_fingerprint: None,
            vocabulary_top: 64,
            guard: 0.005,
            seed: 1,
            threads: 0,
        }
    }
}

impl Options {
    /// From a JSON object: what is left out keeps its default. The published schemes have the fusion `exp`, no metric,
    /// no map and a longer step where nothing else is said.
    ///
    /// # Errors
    /// [`BridgeError::Option`] for what is unknown or out of range.
    pub fn from_json(given: &Value) -> Result<Options, BridgeError> {
        let wrong = |name, value: String, range| Err(BridgeError::Option { name, value, range });
        let given = match given {
            Value::Null => Value::Object(Default::default()),
            other => other.clone(),
        };
        let mut options: Options = match serde_json::from_value(given.clone()) {
            Ok(options) => options,
            Err(error) => return wrong("options", error.to_string(), "a JSON object of lexsem's options"),
        };
        if options.scheme != Scheme::Bag {
            let given = |name: &str| given.get(name).is_some();
            if !given("fusion") {
                options.fusion = Fusion::Exp;
            }
            if !given("whiten") {
                options.whiten = 0.0;
            }
            if !given("rate") {
                options.rate = 2e-3;
            }
        }
        if given.get("map_rate").is_none() && (options.scheme != Scheme::Bag || options.fusion != Fusion::Sum) {
            options.map_rate = 0.0;
        }
        if options.map_rate != 0.0 && options.fusion != Fusion::Sum {
            return wrong(
                "map_rate",
                options.map_rate.to_string(),
                "a map goes with the fusion sum alone; 0 for none",
            );
        }
        if options.scheme == Scheme::LlrPaper {
            return wrong(
                "scheme",
                "llr_paper".to_owned(),
                "bag, slr, slr_paper, llr or clr can be trained",
            );
        }
        options.check()?;
        Ok(options)
    }

    /// Fails where a number is out of its range.
    fn check(&self) -> Result<(), BridgeError> {
        let options = self;
        let wrong = |name, value: String, range| Err(BridgeError::Option { name, value, range });
        let strength = f64::from(options.strength.unwrap_or(1.0));
        let numbers: [(&'static str, f64, f64, f64, &'static str); 12] = [
            ("held_out", options.held_out, 0.05, 0.9, "0.05 to 0.9"),
            ("unseen", options.unseen.unwrap_or(0.0), 0.0, 0.9, "0 to 0.9"),
            ("strength", strength, 0.01, 1.0, "0.01 to 1"),
            ("rate", f64::from(options.rate), 1e-8, 1.0, "1e-8 to 1"),
            ("tau", f64::from(options.tau), 1e-3, 10.0, "0.001 to 10"),
            ("decay", f64::from(options.decay), 0.0, 10.0, "0 to 10"),
            ("dropout", f64::from(options.dropout), 0.0, 0.95, "0 to 0.95"),
            ("whiten", options.whiten, 0.0, 2.0, "0 to 2"),
            ("map_rate", f64::from(options.map_rate), 0.0, 1.0, "0 to 1"),
            ("ridge", options.ridge, 1e-6, 100.0, "1e-6 to 100"),
            ("guard", options.guard, 0.0, 1.0, "0 to 1"),
            ("batch", options.batch as f64, 1.0, 4096.0, "1 to 4096"),
        ];
        for (name, value, least, most, range) in numbers {
            if !(least..=most).contains(&value) {
                return wrong(name, value.to_string(), range);
            }
        }
        let counts: [(&'static str, usize, usize, usize, &'static str); 5] = [
            ("spans", options.spans, 0, 100, "0 to 100"),
            ("keywords", options.keywords, 0, 100, "0 to 100"),
            ("epochs", options.epochs, 1, 1000, "1 to 1000"),
            ("most_queries", options.most_queries, 1, 10_000_000, "1 to 10000000"),
            ("threads", options.threads, 0, 256, "0 to 256"),
        ];
        for (name, value, least, most, range) in counts {
            if !(least..=most).contains(&value) {
                return wrong(name, value.to_string(), range);
            }
        }
        Ok(())
    }
}
