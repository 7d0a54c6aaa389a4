//! How an adapter is trained: the options of the kind, and the queries that a training is given.

use super::Side;
use crate::bridge::BridgeError;
use serde::Deserialize;
use serde_json::Value;

/// How an adapter is trained. Unknown names are refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdapterOptions {
    pub side: Side,
    /// Adam's learning rate.
    pub rate: f32,
    /// The temperature of the loss.
    pub tau: f32,
    /// Pulls the map to zero.
    pub decay: f32,
    /// Most epochs.
    pub epochs: usize,
    /// Queries of a step.
    pub batch: usize,
    /// Share of the documents that is held out, half for stopping, half for the figures.
    pub held_out: f64,
    /// Most passages that a query is held against in a step.
    pub candidates: usize,
    /// On the query side the map begins as the metric `(C + ridge m I)^(-whiten)` of the passages
    /// ([`crate::bridge::train::whiten`]); 0 begins at the identity.
    pub whiten: f64,
    pub ridge: f64,
    /// Whether the map is trained once more on all pairs, for the epochs that the held-out ones chose.
    pub refit: bool,
    /// How far the stored map goes, above 0 to 1; without it half the way where the queries are synthetic, else all of
    /// it.
    pub strength: Option<f32>,
    pub seed: u64,
    /// Threads, 0 for the machine's.
    pub threads: usize,
}

impl Default for AdapterOptions {
    fn default() -> AdapterOptions {
        AdapterOptions {
            side: Side::Query,
            rate: 2e-4,
            tau: 0.03,
            decay: 1e-3,
            epochs: 8,
            batch: 256,
            held_out: 0.2,
            candidates: 32_768,
            whiten: 0.25,
            ridge: 0.1,
            refit: true,
            strength: None,
            seed: 1,
            threads: 0,
        }
    }
}

impl AdapterOptions {
    pub(super) fn read(options: &Value) -> Result<AdapterOptions, BridgeError> {
        let bad = |value: String, range: &'static str| BridgeError::Option {
            name: "options",
            value,
            range,
        };
        let names = "side, rate, tau, decay, epochs, batch, held_out, candidates, whiten, ridge, refit, strength, \
            seed, threads";
        let options: AdapterOptions =
            serde_json::from_value(options.clone()).map_err(|error| bad(error.to_string(), names))?;
        let numbers = [options.rate, options.tau];
        if !numbers.iter().all(|number| number.is_finite() && *number > 0.0)
            || options.decay.is_nan()
            || options.decay < 0.0
        {
            return Err(bad(format!("{options:?}"), "rate and tau above 0, decay at least 0"));
        }
        if options.epochs == 0 || !(2..=8192).contains(&options.batch) || options.candidates < 2 {
            return Err(bad(
                format!("{options:?}"),
                "epochs at least 1, batch 2 to 8192, candidates at least 2",
            ));
        }
        if options
            .strength
            .is_some_and(|strength| !(0.01..=1.0).contains(&strength))
        {
            return Err(bad(format!("{:?}", options.strength), "strength 0.01 to 1"));
        }
        if !(0.05..=0.8).contains(&options.held_out) {
            return Err(bad(options.held_out.to_string(), "held_out 0.05 to 0.8"));
        }
        if !(0.0..=2.0).contains(&options.whiten) || !(1e-6..=100.0).contains(&options.ridge) {
            return Err(bad(format!("{options:?}"), "whiten 0 to 2, ridge 1e-6 to 100"));
        }
        Ok(options)
    }
}

/// Queries with the groups of their passages.
#[derive(Default)]
pub(super) struct Queries {
    pub vectors: Vec<f32>,
    pub targets: Vec<u32>,
}
