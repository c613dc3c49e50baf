//! A gRPC method as bytes in and bytes out: so an answer can be what no message is.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use prost::bytes::{Buf, BufMut, Bytes};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};

use super::Stage;
use super::script::Trouble;

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Answers one method.
pub(crate) trait Method: Copy + Send + Sync + 'static {
    /// `package.Service`.
    const SERVICE: &'static str;
    /// `/package.Service/Method`.
    const PATH: &'static str;

    /// The answer's message.
    fn answer(
        self,
        stage: Arc<Stage>,
        request: Request<Bytes>,
    ) -> impl Future<Output = Result<Bytes, Status>> + Send;
}

/// A service with one method.
#[derive(Clone)]
pub(crate) struct Unary<M> {
    pub(crate) stage: Arc<Stage>,
    pub(crate) method: M,
}

impl<M: Method> NamedService for Unary<M> {
    const NAME: &'static str = M::SERVICE;
}

impl<M: Method> tower::Service<http::Request<Body>> for Unary<M> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != M::PATH {
            return Box::pin(ready(Ok(Status::unimplemented("no such method").into_http())));
        }
        let one = self.clone();
        Box::pin(async move { Ok(Grpc::new(Plain).unary(one, request).await) })
    }
}

impl<M: Method> UnaryService<Bytes> for Unary<M> {
    type Response = Bytes;
    type Future = Answer<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let answer = self.method.answer(self.stage.clone(), request);
        Box::pin(async move { answer.await.map(Response::new) })
    }
}

/// Passes bytes.
#[derive(Clone, Copy, Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// What a trouble makes of an answer, after its time; `None` if it is the usual one.
pub(crate) async fn troubled(trouble: Option<Trouble>) -> Option<Result<Bytes, Status>> {
    let trouble = trouble?;
    trouble.wait().await;
    if trouble.status != 0 {
        return Some(Err(Status::new(i32::from(trouble.status).into(), trouble.message)));
    }
    let bytes = trouble.raw.as_deref().map(hex)?;
    Some(bytes.ok_or_else(|| Status::internal("the script's raw answer is not hex")))
}

/// The bytes that pairs of hex digits say.
fn hex(text: &str) -> Option<Bytes> {
    let digits: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    Some(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_is_pairs_of_digits() {
        assert_eq!(hex("00ffA1").as_deref(), Some(&[0, 255, 0xa1][..]));
        assert_eq!(hex("").as_deref(), Some(&[][..]));
        assert!(hex("0").is_none() && hex("0g").is_none());
    }
}
