//! Messages that all cores must get.

use std::time::Duration;

use tokio::time::sleep;

use crate::admin::Admin;
use crate::message::ShardMessage;

/// How often a message is sent again to a core whose mailbox is full.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// Sends a message to every core, and again to all while one mailbox is full. Getting it twice must
/// change nothing.
pub(super) async fn tell(admin: &Admin, message: impl Fn() -> ShardMessage) {
    while admin.scraper.tell(&message) > 0 {
        sleep(FULL_PAUSE).await;
    }
}
