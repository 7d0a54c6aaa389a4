//! `residual`: a model that was trained to read a chunk together with its context (SitEmb, arXiv 2508.01959).
//!
//! Chunks are taken in fixed groups of consecutive ones (16 in the paper), each the context of all of its group, itself
//! included. An edited chunk changes the vectors of its group alone.

use super::{Combine, Plan};
use crate::bridge::BridgeError;
use crate::model::situated::Form;
use crate::model::{Encoder, Read, Role, Tokens};

impl Plan {
    /// One sequence a chunk for [`Form::Mix`], two for [`Form::Sum`]; `weight` below 0 means the template's.
    pub(super) fn residual(
        &mut self,
        encoder: &Encoder,
        text: &str,
        tokens: &Tokens,
        weight: f32,
    ) -> Result<(), BridgeError> {
        let Some(template) = encoder.situated() else {
            return Err(BridgeError::Option {
                name: "situate",
                value: "residual".to_owned(),
                range: "a model with a template in situated.json, which says how it reads a chunk in its context",
            });
        };
        let weight = if weight < 0.0 { template.weight } else { weight };
        self.combine = match template.form {
            Form::Mix => Combine::Mix(weight),
            Form::Sum => Combine::Sum,
        };
        let mut next = self.reads();
        for (number, chunk) in self.chunks.iter().enumerate() {
            let size = template.window_chunks as usize;
            let first = number - number % size;
            let group = &self.chunks[first..self.chunks.len().min(first + size)];
            let (start, end) = match group {
                [only] => (only.span.start, only.span.end),
                [head, .., tail] => (head.span.start, tail.span.end),
                [] => continue,
            };
            let from = tokens.spans.partition_point(|token| token.start < start);
            let to = tokens.spans.partition_point(|token| token.start < end);
            let own = encoder.tokenize(chunk.encoded(text))?.ids;
            let Some(sequence) = encoder.in_context(&own, &tokens.ids[from..to]) else {
                continue;
            };
            if template.form == Form::Sum {
                let (mut alone, _) = encoder.assemble(Role::Passage, &own)?;
                alone.read = Read::Pooled;
                self.sequences.push(alone);
            }
            self.sequences.push(sequence);
            self.parts[number].alone = Some(next);
            self.parts[number].situated = Some(next + 1);
            next += 2;
        }
        Ok(())
    }
}
