#!/usr/bin/env bash
# Breaks one line of the gateway at a time, in a scratch worktree of HEAD, and runs the simulator:
# every broken line has to be found. Prints the seed that found each; fails if one is missed.
#
#   tools/mutate.sh            all of them
#   tools/mutate.sh NAME...    some
#   tools/mutate.sh reactor    those in the reactor: what the kernel told is taken wrongly
set -euo pipefail
cd "$(dirname "$0")/.."

# name @ file @ what is there @ what is put in its place; \n is a new line
mutants=(
    'early-end@engine/src/shard/relay/pump.rs@let end = waiting == n && pipe.ended@let end = pipe.ended'
    'early-trailers@engine/src/shard/relay/streams.rs@Some(to) if pipe.queued == 0 && !pipe.scheduled => {@Some(to) => {'
    'wrong-part@engine/src/net.rs@self.pool.copy(segment.part(done, part.len as usize), part);\n            append@self.pool.copy(segment.part(0, part.len as usize), part);\n            append'
    'wrong-waiter@engine/src/shard/relay/routes.rs@self.waiters.remove(0);@self.waiters.pop();'
    'credit-twice@engine/src/shard/relay/flow.rs@hop.link.drained(from.key, len, grows,@hop.link.drained(from.key, len * 2, grows,'
    'blind-window@engine/src/shard/relay/streams.rs@if len > 0 && h2.data_room(to.key) < len {@if false {'
    'lost-turn@engine/src/shard/relay/pump.rs@Went::HopBlocked => return self.requeue(conn, key, true),@Went::HopBlocked => return,'
    'lost-resume@engine/src/shard/relay/flow.rs@turn.net.pause(source, hop.waits > 0);@turn.net.pause(source, true);'
    'token-twice@engine/src/shard/sessions/wait.rs@return Err(expired);\n        };\n        if !token@return Ok(Taken::Here(key, turn.now.since(turn.now)));\n        };\n        if !token'
    'any-tenant@engine/src/shard/sessions/directory.rs@if facts.owner.tenant != *tenant {@if false {'
    'pin-over-id@engine/src/shard/sessions/place.rs@(None, Some(key)) => Ok(key),@(_, Some(key)) => Ok(key),'
    'late-bytes@engine/src/shard/workers/worker_conn.rs@self.input.extend_from_slice(turn.net.pool.bytes(segment));\n        self.bound(turn)@let _ = segment;\n        self.bound(turn)'
    'no-shrink@proto/src/hpack/encode.rs@self.resized.take().map(usize::from) else { return };@self.resized.take().map(usize::from) else { return };\n        if smallest < 9999 {\n            return;\n        }'
    'h1-truncated@engine/src/shard/relay/bytes.rs@if end == End::Fin && h1.codec.eof() == Ok(Event::End) {@if end == End::Fin {'
    'h1-reused@engine/src/shard/relay/ends.rs@let again = h1.codec.is_between() && h1.codec.keeps_alive();@let again = h1.codec.is_between();'
    'h1-unseen@engine/src/shard/relay/flow.rs@let gated = self.buffered as usize > if@let gated = h1.has_kept() || self.buffered as usize > if'
    'lost-answer@engine/src/shard/workers/polls.rs@Stage::Offered => Fate::Lost,@Stage::Offered => return,'
    'short-window@engine/src/shard/sessions/park.rs@let most = turn.settings.config.session.park_window;@let most = turn.settings.config.session.park_window / 2;'
    'old-answers@engine/src/shard/relay/tunnels.rs@tunnel.answers = Vec::new();\n        if reusable@if reusable'
    'kept-anyway@engine/src/shard/cause.rs@(Park::Auto, Manner::Silent) => streaming,@(Park::Auto, Manner::Silent) => true,'
    'claimed-twice@engine/src/shard/sessions/directory.rs@session.members.retain(|member| member.ticket != parked);@'
    'all-let-go@engine/src/shard/sessions/directory.rs@let kept = last.filter(|_| !self.members.iter().any(in_use));@let kept = last.filter(|_| self.members.len() == 1);'
    'none-let-go@engine/src/shard/sessions/directory.rs@let stays = !is_parked(member) || Some(member.ticket) == kept;@let stays = true;'
    'unasked-lost@engine/src/shard/sessions/cores.rs@return self.park_unasked(turn, from, of, spent);@return;'
    'forgotten-pause@engine/src/shard/relay/tunnels.rs@hop.stopped.retain(|full| *full == hop.conn);@hop.stopped.clear();'
    'not-joined@engine/src/shard/sessions/cores.rs@roster.tell_join(turn, key);\n        roster.park@roster.park'
    'unparked-twice@engine/src/shard/sessions/attachment.rs@State::Parked { place, .. } => self.parked_index.leave(*place, tenant),@State::Parked { .. } => {}'
    'shared-answer@engine/src/shard/sessions/question.rs@self.hash == hash\n            && (scope == Scope::Connection || asked.credential() == call.credential())\n            && asked@let _ = (hash, scope);\n        asked'
    'forsaken@engine/src/shard/sessions/attachment.rs@*forsaken = false;@let _ = forsaken;'
    'short-as-whole@engine/src/reactor/pump.rs@let written = self.took(conn, bytes);@let bytes = offered;\n        let written = self.took(conn, bytes);'
    'lost-rearm@engine/src/reactor/pump.rs@socket.receive = Receive::Idle;\n            self.looks.push(conn);@socket.receive = Receive::Idle;'
    'kept-block@engine/src/reactor/pump.rs@        self.release(segment);\n    }\n\n    fn release@        let _ = segment;\n    }\n\n    fn release'
    'lost-room@engine/src/reactor/pump.rs@_ if before == Room::Awaited => self.dirty.push(conn),@_ if before == Room::Awaited => {}'
    'lost-cancel@engine/src/reactor/pump.rs@socket.receive = Receive::Armed;\n            self.looks.push(socket.conn);@let _ = &socket;'
    'deaf-end@engine/src/reactor/pump.rs@(None, 0) => self.bytes_ended(conn),@(None, 0) => {}'
    'endless-linger@engine/src/reactor/pump.rs@self.timers.set(Due::Linger, self.net.now, conn);\n        self.look(conn);@self.look(conn);'
    'lost-words@engine/src/shard/nodes/splice.rs@turn.put(far, stray.received());@let _ = stray;'
    'unread-answers@engine/src/shard/handover.rs@let unread = shard.handover.unread;@let unread = 0;'
    'untold-leave@engine/src/shard/handover.rs@shard.leave(Fact::Send { to, message: CoreMessage::NodeLeaves(node) });@let _ = (to, node);'
    'unproved@engine/src/shard/nodes/arrive.rs@if keys.proves_prelude(&self.challenge, prelude, mac) {@if keys.proves_prelude(&self.challenge, prelude, mac) || true {'
    'endless-tries@engine/src/shard/nodes/suspects.rs@take(&mut self.tried, host(peer), TRIES, now);@let _ = (peer, now);'
    'kept-out-forever@engine/src/shard/nodes/suspects.rs@self.kept_out.retain(|(_, until)| now < *until);@let _ = now;'
    'one-secret@engine/src/keys.rs@self.all().any(|key| hmac::verify(&key.preludes@self.all().take(1).any(|key| hmac::verify(&key.preludes'
    'half-relay@engine/src/shard/nodes/splice.rs@turn.net.close(other, Close::Flush);@if near_ended {\n            turn.net.close(other, Close::Flush);\n        }'
    'endless-dial@engine/src/shard/nodes/out.rs@if self.waits(key) {@if self.waits(key) && self.outs.get(key).is_some_and(|out| !matches!(out.step, Step::Dialling)) {'
    'unheard-vanish@engine/src/shard/nodes/out.rs@Step::Flowing => self.part(turn, key, (end, false)),@Step::Flowing if end == End::Timeout => {}\n            Step::Flowing => self.part(turn, key, (end, false)),'
    'impatient@engine/src/shard/workers/home.rs@if !self.local.lose_patience(version, patience, turn.now) {@if !self.local.lose_patience(version, patience / 4, turn.now) {'
)

# Of the simulator's tests; the fixed seeds are those of tests/sim/main.rs.
profile=${RINGWAY_SIM_PROFILE:-dev}

tree=$(mktemp -d)
git worktree add --quiet --detach "$tree" HEAD
trap 'git worktree remove --force "$tree"' EXIT
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}/mutate" RUST_BACKTRACE=0

missed=0
for mutant in "${mutants[@]}"; do
    IFS='@' read -r name file there instead <<<"$mutant"
    if [[ $file == engine/src/reactor/* ]]; then kind=reactor; else kind=-; fi
    if [[ $# -gt 0 && " $* " != *" $name "* && " $* " != *" $kind "* ]]; then continue; fi
    git -C "$tree" checkout --quiet -- .
    perl -0pi -e 'BEGIN { ($a, $b) = map { s/\\n/\n/gr } splice @ARGV, 0, 2 } s/\Q$a\E/$b/' \
        "$there" "$instead" "$tree/$file"
    if git -C "$tree" diff --quiet; then
        echo "$name: the line is not there any more; mend tools/mutate.sh"
        missed=1
        continue
    fi
    begun=$SECONDS
    if told=$(cd "$tree" && cargo test --quiet --profile "$profile" -p ringway --test sim every_seed 2>&1); then
        echo "$name: MISSED"
        missed=1
    else
        found=$(grep -aom1 '^seed [0-9]*: .*' <<<"$told" || true)
        echo "$name: ${found:-does not build} ($((SECONDS - begun)) s)"
        [[ -n $found ]] || missed=1
    fi
done
exit $missed
