//! A query read together with the texts of the passages that a first round found: `<s> q </s> p1 </s> ... pk </s>`
//! (ANCE-PRF: Yu, Xiong, Callan 2021, "Improving Query Representations for Dense Retrieval with Pseudo Relevance
//! Feedback").
//!
//! As in the published training code the pieces are joined as ids, one separator between two, and where they are longer
//! than the limit the end is cut and the last token is the separator again. What is read out is the model's own pooling;
//! a model that pools by the mean is read at the query's tokens alone (our choice: the mean over everything is mostly
//! the passages').

use super::feedback::MOST_TOKENS;
use super::{Encoder, ModelError, Pooling, Read, Role, Sequence};

impl Encoder {
    /// The sequence of a query and passages, the nearest first. Of each passage `passage_tokens` are read, 0 for all.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] where the model puts no token behind a text that could part two.
    pub fn feedback(&self, query: &str, passages: &[&str], passage_tokens: usize) -> Result<Sequence, ModelError> {
        let limit = self.manifest.positions.min(MOST_TOKENS);
        let (first, last) = self.tokenizer.around();
        let Some(separator) = last.last().copied() else {
            return Err(ModelError::Unsupported {
                what: "feedback of texts",
                found: "a model without a token behind a text".to_string(),
                supported: "models that part two texts",
            });
        };
        let own = self.text(Role::Query, query)?.ids;
        let own = own.get(first.len()..own.len() - last.len()).unwrap_or_default();
        let mut ids = [first, own, &[separator]].concat();
        for passage in passages {
            let tokens = self.tokenizer.tokens(passage, limit)?.ids;
            let most = if passage_tokens == 0 {
                tokens.len()
            } else {
                passage_tokens
            };
            ids.extend(tokens.iter().take(most));
            ids.push(separator);
        }
        if ids.len() > limit {
            ids.truncate(limit - 1);
            ids.push(separator);
        }
        let (start, end) = (first.len(), (first.len() + own.len()).min(ids.len()));
        let whole: Vec<_> = std::iter::once(start as u32..end as u32).collect();
        let read = match self.manifest.pooling {
            Pooling::Mean if start == end => Read::Pooled,
            Pooling::Mean if self.manifest.normalize => Read::Spans(whole),
            Pooling::Mean => Read::States(whole),
            _ => Read::Pooled,
        };
        Ok(Sequence { ids, read })
    }
}
