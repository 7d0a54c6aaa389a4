//! What config.json says of rotary embeddings and of kinds of layers, in its old fields and in those of the current
//! library: `rope_parameters` flat, or one object for each kind of layer, and `layer_types`.
//!
//! What is not understood whole is refused: a base or a scaling that is read as the default gives other vectors, silently.

use super::ModelError;
use super::config_json::ConfigJson;
use serde_json::Value;

/// A layer whose tokens see the whole text.
const FULL: &str = "full_attention";
/// A layer whose tokens see a window.
const SLIDING: &str = "sliding_attention";

/// Rotary embeddings that all layers share.
pub struct Rotary<'a> {
    /// Base of the angles, from 1.
    pub base: f64,
    /// "default", or the name of a scaling.
    pub kind: &'a str,
    /// The object that holds the scaling's numbers; null where there is none.
    pub scaling: &'a Value,
}

impl ConfigJson {
    /// Rotary embeddings of a model whose layers are alike.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] where the file has them by kind of layer, or turns a part of a head only;
    /// [`ModelError::Invalid`] for what is no number or no name, and for a new object that leaves the base out.
    pub fn rotary(&self) -> Result<Rotary<'_>, ModelError> {
        let (old, new) = (self.object("rope_scaling")?, self.object("rope_parameters")?);
        if members(new).any(|(_, value)| value.is_object()) {
            let found = "rope_parameters by kind of layer";
            return Err(ModelError::unsupported(
                "rotary embedding",
                found,
                "one object for all layers",
            ));
        }
        self.whole_heads(&self.value)?;
        let (old_kind, new_kind) = (self.kind(old)?, self.kind(new)?);
        if !empty(old) && !empty(new) && old_kind != new_kind {
            let found = format!("rope_scaling {old_kind} beside rope_parameters {new_kind}");
            return Err(ModelError::unsupported("rotary embedding", found, "one of the two"));
        }
        let scaling = if empty(old) { new } else { old };
        let places = [new, old, &self.value];
        let base = places.iter().find_map(|place| place.get("rope_theta"));
        let base = match base.filter(|base| !base.is_null()) {
            Some(base) => self.base(base, "rope_theta")?,
            // The published classes' default, for files that are older than the new object.
            None if new.is_null() => 10_000.0,
            None => return Err(self.invalid("\"rope_parameters\" names no \"rope_theta\"")),
        };
        let kind = if empty(old) { new_kind } else { old_kind };
        Ok(Rotary { base, kind, scaling })
    }

    /// The bases of full and of sliding layers, of which the second is that of the first where `sliding` says that there
    /// are none. Each has its old field with the published class's default. In the new object every kind of layer that
    /// the model has needs its own with a base: the class would fill in what is left out.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] for a scaling of either kind and for one flat object, which the class does not read;
    /// [`ModelError::Invalid`] for what is no number, and for a kind that is left out.
    pub fn rotary_bases(&self, old: [(&str, f64); 2], sliding: bool) -> Result<[f64; 2], ModelError> {
        self.plain(self.object("rope_scaling")?)?;
        self.whole_heads(&self.value)?;
        let new = self.object("rope_parameters")?;
        if new.is_null() {
            let [full, window] = old.map(|(field, default)| match self.value.get(field) {
                None | Some(Value::Null) => Ok(default),
                Some(base) => self.base(base, field),
            });
            return Ok([full?, window?]);
        }
        for (name, value) in members(new) {
            if !value.is_object() {
                let found = format!("rope_parameters with \"{name}\" for all layers");
                return Err(ModelError::unsupported(
                    "rotary embedding",
                    found,
                    "one object for each kind of layer",
                ));
            }
            self.plain(value)?;
        }
        let of = |kind: &str| match new.get(kind).and_then(|object| object.get("rope_theta")) {
            Some(base) => self.base(base, "rope_theta"),
            None => Err(self.invalid(format!("\"rope_parameters\" names no \"rope_theta\" of \"{kind}\""))),
        };
        let full = of(FULL)?;
        Ok([full, if sliding { of(SLIDING)? } else { full }])
    }

    /// Layers from one without a window to the next, the first layer without one: what `layer_types` spells out. `None`
    /// where the file does not have the field.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] for layers in another order or of another kind, [`ModelError::Invalid`] for a list of
    /// another length than the model's layers.
    pub fn full_attention_every(&self, layers: usize) -> Result<Option<usize>, ModelError> {
        let Some(kinds) = self.layer_types()? else {
            return Ok(None);
        };
        if kinds.len() != layers {
            let what = format!("\"layer_types\" names {} layers of {layers}", kinds.len());
            return Err(self.invalid(what));
        }
        let next = kinds.iter().skip(1).position(|kind| *kind == FULL);
        let every = next.map_or(layers, |next| next + 1);
        let wanted = |layer: usize| if layer.is_multiple_of(every) { FULL } else { SLIDING };
        match (0..).zip(&kinds).find(|(layer, kind)| **kind != wanted(*layer)) {
            None => Ok(Some(every)),
            Some((layer, kind)) => Err(ModelError::unsupported(
                "layer_types",
                format!("{kind} as layer {layer}"),
                "full_attention first and then every n-th layer, sliding_attention between",
            )),
        }
    }

    /// Fails where `layer_types` names a layer that is not of the one kind that all have, with a window or without.
    pub fn layers_are_alike(&self, windowed: bool) -> Result<(), ModelError> {
        let wanted = if windowed { SLIDING } else { FULL };
        let kinds = self.layer_types()?.unwrap_or_default();
        match kinds.into_iter().find(|kind| *kind != wanted) {
            Some(kind) => Err(ModelError::unsupported("layer_types", kind, "layers that are alike")),
            None => Ok(()),
        }
    }

    fn layer_types(&self) -> Result<Option<Vec<&str>>, ModelError> {
        let wrong = || self.invalid("field \"layer_types\" is not a list of names");
        match self.value.get("layer_types") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(kinds)) => {
                let names: Option<Vec<&str>> = kinds.iter().map(Value::as_str).collect();
                names.map(Some).ok_or_else(wrong)
            }
            Some(_) => Err(wrong()),
        }
    }

    /// A field that holds an object, or null.
    fn object(&self, field: &str) -> Result<&Value, ModelError> {
        match self.value.get(field) {
            None => Ok(&Value::Null),
            Some(value) if value.is_null() || value.is_object() => Ok(value),
            Some(_) => Err(self.invalid(format!("field \"{field}\" is not an object"))),
        }
    }

    /// Fails for any scaling.
    fn plain(&self, object: &Value) -> Result<(), ModelError> {
        match self.kind(object)? {
            "default" => Ok(()),
            other => Err(ModelError::unsupported("rotary embedding", other, "default")),
        }
    }

    /// The name of a scaling, under its new key or its old one. An object with numbers of a scaling has to name it.
    fn kind<'v>(&self, object: &'v Value) -> Result<&'v str, ModelError> {
        self.whole_heads(object)?;
        let named = ["rope_type", "type"].iter().find_map(|key| object.get(key));
        match named {
            Some(Value::String(kind)) => Ok(kind),
            Some(_) => Err(self.invalid("field \"rope_type\" is not a name")),
            None if members(object).all(|(key, _)| ["rope_theta", "partial_rotary_factor"].contains(&key.as_str())) => {
                Ok("default")
            }
            None => Err(self.invalid("a scaling of rotary embeddings names no \"rope_type\"")),
        }
    }

    /// Fails where a part of each head is left as it is.
    fn whole_heads(&self, object: &Value) -> Result<(), ModelError> {
        match object.get("partial_rotary_factor") {
            None | Some(Value::Null) => Ok(()),
            Some(factor) if factor.as_f64() == Some(1.0) => Ok(()),
            Some(factor) => {
                let found = format!("partial_rotary_factor {factor}");
                Err(ModelError::unsupported(
                    "rotary embedding",
                    found,
                    "heads that turn in whole",
                ))
            }
        }
    }

    fn base(&self, value: &Value, field: &str) -> Result<f64, ModelError> {
        let base = value.as_f64().filter(|base| *base >= 1.0 && base.is_finite());
        base.ok_or_else(|| self.invalid(format!("field \"{field}\" is not a number from 1")))
    }
}

/// Keys and values of an object; none of anything else.
fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn empty(value: &Value) -> bool {
    members(value).next().is_none()
}
