// Each user again and again: a new connection, one call, close. NVIDIA's load test does the same.
import grpc from 'k6/net/grpc';
import { Counter, Trend } from 'k6/metrics';

const client = new grpc.Client();
client.load([__ENV.PROTO_DIR], 'echo.proto');

const good = new Counter('good');
const bad = new Counter('bad');
const took = new Trend('took', true);

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

const metadata = { authorization: 'Bearer dev-key', 'function-id': __ENV.FUNCTION };

export default function () {
  const begun = Date.now();
  client.connect(__ENV.TARGET, { plaintext: true });
  const answer = client.invoke(
    'ringway.echo.v1.Echo/Unary', { payload: 'aGVsbG8=' }, { metadata, timeout: '30s' });
  client.close();
  if (answer && answer.status === grpc.StatusOK) {
    good.add(1);
    took.add(Date.now() - begun);
  } else {
    bad.add(1);
    console.error(JSON.stringify(answer && answer.error));
  }
}

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
