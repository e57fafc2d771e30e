//! `query`: how fast a running appliance answers, by trace id and by service and attribute.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use query_api::proto::{SearchTracesRequest, Tag};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::appliance::Appliance;
use crate::check;
use crate::clock::{self, parse_duration};
use crate::error::Error;
use crate::latency::{Latencies, Quantiles};
use crate::ledger::Ledger;
use crate::random::Random;
use crate::report::per_second;
use crate::wire::each_message;

/// Options of `query`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The query port
    #[arg(long, default_value = "127.0.0.1:4320")]
    query: String,
    /// Take trace ids from the error traces of this ledger; without it from a search
    #[arg(long)]
    ledger: Option<PathBuf>,
    /// Whose traces
    #[arg(long, default_value = "default")]
    tenant: String,
    /// Questions of each kind
    #[arg(long, default_value_t = 2_000)]
    requests: u64,
    /// Stop each kind after this long
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    duration: Duration,
    /// Questions under way
    #[arg(long, default_value_t = 1)]
    concurrency: u32,
    /// Trace ids to choose from
    #[arg(long, default_value_t = 10_000)]
    ids: u32,
    /// Traces a search asks for
    #[arg(long, default_value_t = 20)]
    limit: u32,
    /// Search for this attribute only; without it for any that the traces have
    #[arg(long)]
    tag_key: Option<String>,
    /// Where the draws come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// How fast each kind of question was answered.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Trace ids and conditions that were drawn from.
    ids: usize,
    conditions: usize,
    concurrency: u32,
    trace_by_id: Answered,
    search: Answered,
}

#[derive(Debug, Serialize)]
struct Answered {
    latency: Quantiles,
    per_second: f64,
    errors: u64,
    first_error: Option<String>,
    /// Spans of a trace or traces of a search, on average.
    found_mean: f64,
    /// Answers that held nothing.
    empty: u64,
}

/// A question of either kind.
#[derive(Clone)]
enum Question {
    Trace([u8; 16]),
    Search(SearchTracesRequest),
}

/// Asks and reports.
///
/// # Errors
/// When the appliance does not answer or has no trace to ask for.
pub(crate) fn run(args: &Args) -> Result<Report, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::System { what: "start a runtime", source })?;
    runtime.block_on(measure(args))
}

async fn measure(args: &Args) -> Result<Report, Error> {
    let appliance = Appliance::connect(&args.query, &args.tenant).await?;
    let ids = match &args.ledger {
        Some(path) => ids_of_ledger(path, args)?,
        None => ids_of_search(&appliance, args.ids).await?,
    };
    if ids.is_empty() {
        return Err(Error::Options("there is no trace to ask for: load some first".to_owned()));
    }
    let conditions = conditions(&appliance, &ids, args).await?;
    let by_id: Vec<Question> = ids.iter().map(|&id| Question::Trace(id)).collect();
    let searches: Vec<Question> = conditions.into_iter().map(Question::Search).collect();
    Ok(Report {
        ids: by_id.len(),
        conditions: searches.len(),
        concurrency: args.concurrency,
        trace_by_id: ask_all(&appliance, by_id, args).await?,
        search: ask_all(&appliance, searches, args).await?,
    })
}

fn ids_of_ledger(path: &Path, args: &Args) -> Result<Vec<[u8; 16]>, Error> {
    let (ledger, plan) = Ledger::read(path)?;
    let mut ids = Vec::new();
    for delivery in &ledger.deliveries {
        let claims = (0u32..).zip(check::claims(&plan, delivery));
        let errors = claims.filter(|(_, claim)| claim.error);
        ids.extend(errors.map(|(trace, _)| plan.trace_id(delivery.group, trace)));
    }
    Random::new(args.seed).shuffle(&mut ids);
    ids.truncate(args.ids as usize);
    Ok(ids)
}

async fn ids_of_search(appliance: &Appliance, count: u32) -> Result<Vec<[u8; 16]>, Error> {
    const PAGE_MAX: u32 = 10_000;
    let mut ids = Vec::new();
    let mut cursor = Vec::new();
    for _ in 0..count.div_ceil(PAGE_MAX) {
        let limit = count.min(PAGE_MAX);
        let search = SearchTracesRequest { limit, cursor, ..SearchTracesRequest::default() };
        let page = appliance.search(search).await?;
        ids.extend(page.traces.iter().filter_map(|trace| <[u8; 16]>::try_from(&trace.trace_id[..]).ok()));
        cursor = page.next_cursor;
        if cursor.is_empty() {
            break;
        }
    }
    ids.truncate(count as usize);
    Ok(ids)
}

/// Conditions that some trace meets: a service and a string attribute of one of its spans.
async fn conditions(
    appliance: &Appliance,
    ids: &[[u8; 16]],
    args: &Args,
) -> Result<Vec<SearchTracesRequest>, Error> {
    const TRACES: usize = 200;
    let mut random = Random::new(args.seed);
    let mut conditions = Vec::new();
    for _ in 0..TRACES.min(ids.len()) {
        let Some(answer) = appliance.trace(ids[random.below(ids.len())]).await? else { continue };
        let mut pairs = Vec::new();
        for resource_spans in each_message(&answer.trace.unwrap_or_default().0, 1) {
            string_attributes(resource_spans?, args.tag_key.as_deref(), &mut pairs)?;
        }
        if pairs.is_empty() {
            continue;
        }
        let (service, key, value) = pairs.swap_remove(random.below(pairs.len()));
        conditions.push(SearchTracesRequest {
            service,
            tags: vec![Tag { key, value }],
            limit: args.limit,
            ..SearchTracesRequest::default()
        });
    }
    Ok(conditions)
}

type Pair = (String, String, String);

/// Adds (service, key, value) of every string attribute of every span.
fn string_attributes(
    resource_spans: &[u8],
    wanted: Option<&str>,
    pairs: &mut Vec<Pair>,
) -> Result<(), Error> {
    let mut service = String::new();
    for resource in each_message(resource_spans, 1) {
        for attribute in each_message(resource?, 1) {
            if let Some((key, value)) = string_attribute(attribute?)? {
                service = if key == "service.name" { value } else { service };
            }
        }
    }
    for scope_spans in each_message(resource_spans, 2) {
        for span in each_message(scope_spans?, 2) {
            for attribute in each_message(span?, 9) {
                let Some((key, value)) = string_attribute(attribute?)? else { continue };
                if wanted.is_none_or(|wanted| wanted == key) {
                    pairs.push((service.clone(), key, value));
                }
            }
        }
    }
    Ok(())
}

fn string_attribute(attribute: &[u8]) -> Result<Option<(String, String)>, Error> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let key = each_message(attribute, 1).next().transpose()?;
    let Some(value) = each_message(attribute, 2).next().transpose()? else { return Ok(None) };
    let value = each_message(value, 1).next().transpose()?;
    Ok(key.zip(value).map(|(key, value)| (text(key), text(value))))
}

#[derive(Default)]
struct Counted {
    latencies: Option<Latencies>,
    asked: u64,
    found: u64,
    empty: u64,
    errors: u64,
    first_error: Option<String>,
}

async fn ask_all(appliance: &Appliance, questions: Vec<Question>, args: &Args) -> Result<Answered, Error> {
    let questions = Arc::new(questions);
    let left = Arc::new(AtomicU64::new(if questions.is_empty() { 0 } else { args.requests }));
    let start = clock::now();
    let mut askers = JoinSet::new();
    for asker in 0..args.concurrency.max(1) {
        let (appliance, questions, left) = (appliance.clone(), Arc::clone(&questions), Arc::clone(&left));
        let mut random = Random::new(args.seed.wrapping_add(u64::from(asker)));
        let end = start + args.duration;
        askers.spawn(async move {
            let mut counted = Counted { latencies: Some(Latencies::new()), ..Counted::default() };
            let take = |left: u64| left.checked_sub(1);
            while clock::now() < end && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
            {
                let question = questions[random.below(questions.len())].clone();
                counted.ask(&appliance, question).await;
            }
            counted
        });
    }
    let mut latencies = Latencies::new();
    let mut all = Counted::default();
    while let Some(counted) = askers.join_next().await {
        let counted = counted.map_err(|_panicked| Error::ThreadLost)?;
        latencies.add(&counted.latencies.unwrap_or_else(Latencies::new));
        all.asked += counted.asked;
        all.found += counted.found;
        all.empty += counted.empty;
        all.errors += counted.errors;
        all.first_error = all.first_error.or(counted.first_error);
    }
    Ok(Answered {
        latency: latencies.quantiles(),
        per_second: per_second(all.asked, start.elapsed().as_secs_f64()),
        errors: all.errors,
        first_error: all.first_error,
        found_mean: per_second(all.found, all.asked.max(1) as f64),
        empty: all.empty,
    })
}

impl Counted {
    async fn ask(&mut self, appliance: &Appliance, question: Question) {
        let start = clock::now();
        let found = match question {
            Question::Trace(id) => appliance.trace(id).await.map(|answer| {
                let summary = answer.and_then(|answer| answer.summary);
                summary.map_or(0, |summary| u64::from(summary.span_count))
            }),
            Question::Search(search) => appliance.search(search).await.map(|page| page.traces.len() as u64),
        };
        let latency = start.elapsed();
        self.asked += 1;
        match found {
            Ok(found) => {
                self.found += found;
                self.empty += u64::from(found == 0);
                if let Some(latencies) = &mut self.latencies {
                    latencies.record(latency);
                }
            }
            Err(error) => {
                self.errors += 1;
                self.first_error.get_or_insert_with(|| error.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;
    use crate::plan::tests::options;
    use crate::shape::Shape;

    #[test]
    fn conditions_come_from_services_and_their_string_attributes() {
        let plan = Plan::new(options(Shape::S)).unwrap();
        let body = plan.body(0, 0, 10_000_000_000);
        let mut pairs = Vec::new();
        let mut users = Vec::new();
        for resource_spans in each_message(&body[5..], 1) {
            let resource_spans = resource_spans.unwrap();
            string_attributes(resource_spans, None, &mut pairs).unwrap();
            string_attributes(resource_spans, Some("enduser.id"), &mut users).unwrap();
        }
        assert!(pairs.len() > 1_000 && users.len() > 62 && users.len() < pairs.len() / 10);
        assert!(users.iter().all(|(service, key, value)| {
            !service.is_empty() && key == "enduser.id" && value.len() == "user-000000".len()
        }));
        assert!(!pairs.iter().any(|(_, key, _)| key == "http.response.status_code"));
    }
}
