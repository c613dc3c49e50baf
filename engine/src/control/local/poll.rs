//! A worker's request for work: the body of `POST /v1/work`.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Deserialize;
use uuid::Uuid;

/// A worker's request for work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PollRequest {
    /// The function it serves, in canonical form.
    pub function_id: Arc<str>,
    /// The version it serves, in canonical form.
    pub function_version_id: Arc<str>,
    /// How many new sessions it can take; 0 asks for reconnects only.
    pub slots: u32,
    /// The sessions it holds; sorted, each once.
    pub request_ids: Vec<Uuid>,
}

/// The JSON as sent. Unknown keys are ignored: a newer worker may say more.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    #[serde(borrow)]
    function_id: Option<Text<'a>>,
    #[serde(borrow)]
    function_version_id: Option<Text<'a>>,
    slots: Option<u32>,
    #[serde(borrow)]
    request_ids: Option<Vec<Text<'a>>>,
}

/// A text, borrowed from the input unless it has escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl PollRequest {
    /// Reads a body with at most `max_ids` request ids.
    ///
    /// # Errors
    /// What is wrong, in a sentence for the worker's author: the text of the 400.
    pub fn parse(json: &[u8], max_ids: usize) -> Result<Self, String> {
        let body: Body<'_> = serde_json::from_slice(json)
            .map_err(|fault| format!("not a poll for work: {fault}"))?;
        let ids = body.request_ids.unwrap_or_default();
        if ids.len() > max_ids {
            return Err(format!("requestIds has {} entries, at most {max_ids} fit", ids.len()));
        }
        let mut request_ids = Vec::with_capacity(ids.len());
        for (at, id) in ids.iter().enumerate() {
            let id = Uuid::try_parse(&id.0);
            request_ids.push(id.map_err(|_| format!("requestIds[{at}] is not a UUID"))?);
        }
        request_ids.sort_unstable();
        request_ids.dedup();
        Ok(Self {
            function_id: canonical(body.function_id, "functionId")?,
            function_version_id: canonical(body.function_version_id, "functionVersionId")?,
            slots: body.slots.unwrap_or(1),
            request_ids,
        })
    }

    /// Whether the worker says that it holds this session.
    #[must_use]
    pub fn holds(&self, id: &Uuid) -> bool {
        self.request_ids.binary_search(id).is_ok()
    }
}

fn canonical(value: Option<Text<'_>>, key: &str) -> Result<Arc<str>, String> {
    let value = value.ok_or_else(|| format!("{key} is missing"))?;
    let id = Uuid::try_parse(&value.0).map_err(|_| format!("{key} is not a UUID"))?;
    Ok((&*id.hyphenated().encode_lower(&mut Uuid::encode_buffer())).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const F: &str = "11111111-1111-4111-8111-111111111111";
    const V: &str = "22222222-2222-4222-8222-222222222222";

    fn parse(json: &str) -> Result<PollRequest, String> {
        PollRequest::parse(json.as_bytes(), 3)
    }

    #[test]
    fn slots_default_to_one_and_unknown_keys_are_ignored() {
        let json = format!(r#"{{"functionId":"{F}","functionVersionId":"{V}","future":[1]}}"#);
        let poll = parse(&json).unwrap();
        assert_eq!((poll.slots, poll.request_ids.len()), (1, 0));
        assert_eq!((&*poll.function_id, &*poll.function_version_id), (F, V));
    }

    #[test]
    fn ids_come_out_canonical_sorted_and_once() {
        let json = format!(
            r#"{{"functionId":"{}","functionVersionId":"{V}","slots":0,"requestIds":["{V}","{F}","{V}"]}}"#,
            "AAAAAAAA-1111-4111-8111-111111111111"
        );
        let poll = parse(&json).unwrap();
        assert!(poll.function_id.starts_with("aaaaaaaa-"));
        let ids: Vec<String> = poll.request_ids.iter().map(Uuid::to_string).collect();
        assert_eq!(ids, [F, V]);
        assert!(poll.holds(&V.parse().unwrap()) && !poll.holds(&Uuid::nil()));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let with =
            |rest: &str| format!(r#"{{"functionId":"{F}","functionVersionId":"{V}"{rest}}}"#);
        let four = format!(r#","requestIds":["{F}","{F}","{F}","{F}"]"#);
        for (json, reason) in [
            ("".into(), "not a poll for work"),
            ("[]".into(), "not a poll for work"),
            ("\u{0}\u{1}".into(), "not a poll for work"),
            (r#"{"functionVersionId":"x"}"#.into(), "functionId is missing"),
            (r#"{"functionId":"x"}"#.into(), "functionId is not a UUID"),
            (format!(r#"{{"functionId":"{F}"}}"#), "functionVersionId is missing"),
            (with(r#","slots":-1"#), "slots"),
            (with(r#","slots":1.5"#), "slots"),
            (with(r#","requestIds":["x"]"#), "requestIds[0] is not a UUID"),
            (with(&four), "requestIds has 4 entries, at most 3 fit"),
            (with(r#","slots":1,"slots":2"#), "duplicate"),
        ] {
            let fault = parse(&json).unwrap_err();
            let said = fault.contains(reason) || (reason == "slots" && fault.contains("invalid"));
            assert!(said, "{json}: {fault}");
        }
    }
}
