//! The backend's end of the encoder service: lists of items, texts, documents.

use super::call::Call;
use super::channel::Channel;
use super::documents::{Documents, SituatedPassage};
use super::model_ref::ModelRef;
use super::sent::{MOST_TEXT, cut, place_of, title_of};
use super::shared::Shared;
use super::{Item, Lane, Reply, Report, ServiceError};
use crate::bridge::situate::SituateOptions;
use crate::compute::memory::reserve;
use crate::model::Role;
use crate::text::{Place, Span};

/// Takes the replies of [`encode`]: item number (from 0, in the order of the items) and reply.
pub type ReplySink<'a> = &'a mut dyn FnMut(usize, Reply) -> Result<(), ServiceError>;

/// Sends a list of items and takes the replies, in any order. Keeps a bounded number of items in flight. The first
/// item that fails ends the call. Reacts to a cancel within milliseconds: the server's error is raised, the slot freed.
pub fn encode(
    model: &ModelRef,
    lane: Lane,
    items: &mut dyn Iterator<Item = Item>,
    sink: ReplySink<'_>,
) -> Result<(), ServiceError> {
    let mut call: Option<Call> = None;
    let mut next = 0u64;
    let mut more = true;
    loop {
        while more && call.as_ref().is_none_or(Call::has_room) {
            let Some(item) = items.next() else {
                more = false;
                break;
            };
            if call.is_none() {
                call = Some(Call::open(model, lane)?);
            }
            if let Some(call) = &mut call {
                call.send(next, item)?;
            }
            next += 1;
        }
        let Some(call) = &mut call else { return Ok(()) };
        match call.poll()? {
            Some((number, reply)) => {
                match &reply {
                    Reply::Vector(vector) => model.check(vector)?,
                    Reply::Passages(passages) => {
                        let vectors = passages.iter().map(|passage| &passage.vector);
                        vectors
                            .filter(|vector| !vector.is_empty())
                            .try_for_each(|vector| model.check(vector))?;
                    }
                    Reply::Tokens(_) | Reply::States { .. } | Reply::Vocabulary(_) => {}
                    Reply::Failed(_) | Reply::Report(_) => {}
                }
                sink(number as usize, reply)?;
            }
            None if call.in_flight() == 0 && !more => return Ok(()),
            None => call.wait()?,
        }
    }
}

/// Has something done with a model that is not about texts, on the device that has the least to do.
pub fn ask(model: &ModelRef, item: Item) -> Result<Report, ServiceError> {
    report(Call::open(model, Lane::Query)?, item)
}

/// Has it done on every device that has a worker; with each report, the device's name. Where none has, waits for one.
pub fn ask_each(model: &ModelRef, item: Item) -> Result<Vec<(String, Report)>, ServiceError> {
    let shared = Shared::get().ok_or(ServiceError::NotPreloaded)?;
    let mut reports = Vec::new();
    for (number, device) in shared.devices().iter().enumerate() {
        if device.worker_runs()
            && let Some(channel) = Channel::open_on(Lane::Query, &model.name, number)?
        {
            let call = Call::on(model, Lane::Query, channel);
            reports.push((device.name.get(), report(call, item.clone())?));
        }
    }
    if reports.is_empty() {
        let name = shared.devices().first().map(|device| device.name.get());
        reports.push((name.unwrap_or_default(), ask(model, item)?));
    }
    Ok(reports)
}

fn report(mut call: Call, item: Item) -> Result<Report, ServiceError> {
    call.send(0, item)?;
    loop {
        match call.poll()? {
            Some((_, Reply::Report(report))) => return Ok(report),
            Some(_) => return Err(ServiceError::Protocol("no report".to_owned())),
            None => call.wait()?,
        }
    }
}

/// The vector of a query, on the query lane.
pub fn embed_query(model: &ModelRef, text: &str) -> Result<Vec<f32>, ServiceError> {
    let vectors = embed_each(model, Lane::Query, Role::Query, &mut std::iter::once(text))?;
    vectors
        .into_iter()
        .next()
        .ok_or_else(|| ServiceError::Protocol("no reply".to_owned()))
}

/// One vector a text, in order; on the query lane where there is one text, else on the bulk lane.
pub fn embed(model: &ModelRef, role: Role, texts: &[String]) -> Result<Vec<Vec<f32>>, ServiceError> {
    let lane = if texts.len() == 1 { Lane::Query } else { Lane::Bulk };
    embed_each(model, lane, role, &mut texts.iter().map(String::as_str))
}

fn embed_each(
    model: &ModelRef,
    lane: Lane,
    role: Role,
    texts: &mut dyn Iterator<Item = &str>,
) -> Result<Vec<Vec<f32>>, ServiceError> {
    let mut vectors: Vec<Vec<f32>> = Vec::new();
    let mut items = texts.map(|text| Item::Embed {
        role,
        text: cut(text, MOST_TEXT).to_owned(),
    });
    encode(model, lane, &mut items, &mut |number, reply| match reply {
        Reply::Vector(vector) => {
            if vectors.len() <= number {
                let more = number + 1 - vectors.len();
                reserve(&mut vectors, more)?;
                vectors.resize_with(number + 1, Vec::new);
            }
            vectors[number] = vector;
            Ok(())
        }
        _ => Err(ServiceError::Protocol("a text was answered with passages".to_owned())),
    })?;
    Ok(vectors)
}

/// The passages of one document, in order.
pub fn situate_document(
    model: &ModelRef,
    lane: Lane,
    title: Option<&str>,
    body: &str,
    options: &SituateOptions,
) -> Result<Vec<SituatedPassage>, ServiceError> {
    let mut passages = Vec::new();
    let mut sink = |_, found| {
        passages = found;
        Ok(())
    };
    let mut documents = Documents::open(model, lane, options)?;
    documents.push(0, title, body, &mut sink)?;
    documents.flush(&mut sink)?;
    Ok(passages)
}

/// The passages of one document without vectors, in order.
pub fn chunk_document(
    model: &ModelRef,
    lane: Lane,
    body: &str,
    chunk_tokens: u32,
) -> Result<Vec<SituatedPassage>, ServiceError> {
    let segments = super::documents::segments(body)?;
    let mut parts = vec![Vec::new(); segments.len()];
    let mut items = segments.iter().map(|segment| Item::Chunks {
        place: place_of(&segment.place),
        text: segment.span.of(body).unwrap_or_default().to_owned(),
        chunk_tokens,
    });
    encode(model, lane, &mut items, &mut |number, reply| {
        if let (Reply::Passages(passages), Some(part)) = (reply, parts.get_mut(number)) {
            *part = passages;
        }
        Ok(())
    })?;
    let starts = segments.iter().map(|segment| segment.span.start);
    super::documents::number(starts.zip(parts))
}

/// Most chunks of a document that go to the encoder together; a multiple of the windows that models are trained with.
const MOST_CHUNKS: usize = 64;

/// The vectors of the chunks of one document that the caller has cut, in order. Chunks hold more than white space.
pub fn situate_chunks(
    model: &ModelRef,
    title: Option<&str>,
    chunks: &[&str],
    options: &SituateOptions,
) -> Result<Vec<SituatedPassage>, ServiceError> {
    let runs: Vec<&[&str]> = chunks.chunks(MOST_CHUNKS).collect();
    let mut found = vec![Vec::new(); runs.len()];
    let mut items = runs.iter().map(|run| {
        let (mut text, mut spans) = (String::new(), Vec::with_capacity(run.len()));
        for chunk in *run {
            if !text.is_empty() {
                text.push('\n');
            }
            let start = text.len() as u32;
            text.push_str(cut(chunk, MOST_TEXT / MOST_CHUNKS));
            spans.push(Span {
                start,
                end: text.len() as u32,
            });
        }
        Item::Situate {
            title: title_of(title),
            place: Place::default(),
            text,
            options: options.clone(),
            chunks: spans,
        }
    });
    encode(model, Lane::Bulk, &mut items, &mut |number, reply| match reply {
        Reply::Passages(passages) => {
            if let Some(place) = found.get_mut(number) {
                *place = passages;
            }
            Ok(())
        }
        _ => Err(ServiceError::Protocol(
            "chunks were answered with something else".to_owned(),
        )),
    })?;
    super::documents::number(found.into_iter().map(|passages| (0, passages)))
}
