// Each user again and again: a new session, twenty things said and answered, and its end. By gRPC,
// or by WebSocket with a whole Close handshake, as a browser does it.
import grpc from 'k6/net/grpc';
import { WebSocket } from 'k6/experimental/websockets';
import { Counter, Trend } from 'k6/metrics';

const THINGS = 20;
const good = new Counter('good');
const bad = new Counter('bad');
const took = new Trend('took', true);

const client = new grpc.Client();
client.load([__ENV.PROTO_DIR], 'echo.proto');

export const options = {
  scenarios: {
    users: {
      executor: 'constant-vus',
      vus: Number(__ENV.USERS),
      duration: `${__ENV.SECONDS}s`,
      gracefulStop: '35s',
    },
  },
  summaryTrendStats: ['med', 'p(99)'],
};

const who = { authorization: 'Bearer dev-key', 'function-id': __ENV.FUNCTION };

function ended(well, begun) {
  (well ? good : bad).add(1);
  if (well) took.add(Date.now() - begun);
}

function byGrpc() {
  const begun = Date.now();
  client.connect(__ENV.TARGET, { plaintext: true });
  let well = true;
  for (let n = 0; n < THINGS && well; n++) {
    const answer = client.invoke('ringway.echo.v1.Echo/Unary', { payload: 'aGVsbG8=' },
      { metadata: who, timeout: '30s' });
    well = answer && answer.status === grpc.StatusOK;
  }
  client.close();
  ended(well, begun);
}

function byWebSocket() {
  const begun = Date.now();
  const socket = new WebSocket(`ws://${__ENV.TARGET}/ws`, null, { headers: who });
  let said = 0;
  let failed = false;
  socket.onopen = () => socket.send('hello');
  socket.onmessage = () => {
    said += 1;
    if (said < THINGS) socket.send('hello'); else socket.close(1000);
  };
  socket.onerror = (error) => { failed = true; console.error(error.error); };
  socket.onclose = () => ended(!failed && said === THINGS, begun);
}

export default __ENV.BY === 'grpc' ? byGrpc : byWebSocket;

export function handleSummary(data) {
  const value = (metric, name) => (data.metrics[metric] ? data.metrics[metric].values[name] : 0);
  return {
    stdout: JSON.stringify({
      good: value('good', 'count'),
      bad: value('bad', 'count'),
      p50: value('took', 'med'),
      p99: value('took', 'p(99)'),
    }),
  };
}
