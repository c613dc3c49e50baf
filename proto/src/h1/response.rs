//! A worker's response head (RFC 9112 §4, §6.3).

use super::head::{
    HeadFault, Lines, Version, check_options, connection_names, options, read_field_line,
    read_length, read_version,
};
use crate::fields::{Field, Fields, Token};

/// What the connection has to remember of a response.
#[derive(Clone, Copy, Debug)]
pub(super) struct Response {
    pub(super) version: Version,
    pub(super) status: u16,
    pub(super) body: ResponseBody,
    pub(super) keep_alive: bool,
}

/// How a response's body is framed; whether there can be one the caller knows (HEAD).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResponseBody {
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

/// Reads a whole head; `fields` then begins with `:status`.
pub(super) fn read_response(
    head: &[u8],
    to_head: bool,
    fields: &mut Fields,
) -> Result<Response, HeadFault> {
    fields.clear();
    let mut lines = Lines(head);
    let (version, digits) = read_status_line(lines.next().unwrap_or_default())?;
    fields.push(Field { token: Token::Status, ..Field::new(b":status", digits) });
    for line in lines {
        read_field_line(line, fields)?;
    }
    check_options(fields)?;
    let status = digits.iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
    let body = match status {
        // RFC 9112 §6.3: whatever the fields say.
        100..200 | 204 | 304 => ResponseBody::None,
        _ if to_head => ResponseBody::None,
        _ => read_framing(fields, version)?,
    };
    let keep_alive = !connection_names(fields, b"close")
        && (version == Version::Http11 || connection_names(fields, b"keep-alive"));
    let keep_alive = keep_alive && body != ResponseBody::UntilClose;
    Ok(Response { version, status, body, keep_alive })
}

/// `version SP 3DIGIT [SP reason]`; the reason says nothing to anybody. A status over 599 means
/// nothing here, but to those who use it (RFC 9110 §15): it passes.
fn read_status_line(line: &[u8]) -> Result<(Version, &[u8]), HeadFault> {
    const FAULT: HeadFault = HeadFault::Malformed("status line is malformed");
    let (version, rest) = line.split_at_checked(8).ok_or(FAULT)?;
    let version = read_version(version).ok_or(FAULT)??;
    match rest {
        [b' ', digits @ ..] if digits.len() == 3 || digits.get(3) == Some(&b' ') => {
            let digits = &digits[..3];
            let valid = matches!(digits[0], b'1'..=b'9') && digits.iter().all(u8::is_ascii_digit);
            if valid { Ok((version, digits)) } else { Err(FAULT) }
        }
        _ => Err(FAULT),
    }
}

fn read_framing(fields: &Fields, version: Version) -> Result<ResponseBody, HeadFault> {
    let (mut length, mut coding) = (None, None);
    for field in fields.iter() {
        match field.token {
            // RFC 9110 §8.6: the same number again is forgiven, another is not.
            Token::ContentLength => {
                for member in options(field.value) {
                    let member = read_length(member)?;
                    if length.replace(member).is_some_and(|earlier| earlier != member) {
                        return Err(HeadFault::Malformed("several Content-Length fields"));
                    }
                }
            }
            Token::TransferEncoding if coding.is_some() => {
                return Err(HeadFault::Malformed("several Transfer-Encoding fields"));
            }
            Token::TransferEncoding => coding = Some(field.value),
            _ => {}
        }
    }
    match (length, coding) {
        (None, None) => Ok(ResponseBody::UntilClose),
        (Some(0), None) => Ok(ResponseBody::None),
        (Some(length), None) => Ok(ResponseBody::Length(length)),
        (Some(_), Some(_)) => {
            Err(HeadFault::Malformed("both Content-Length and Transfer-Encoding"))
        }
        (None, Some(_)) if version == Version::Http10 => {
            Err(HeadFault::Malformed("Transfer-Encoding in HTTP/1.0"))
        }
        (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => {
            Ok(ResponseBody::Chunked)
        }
        (None, Some(_)) => Err(HeadFault::UnknownCoding),
    }
}
