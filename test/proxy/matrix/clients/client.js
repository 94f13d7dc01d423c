// A grpc-js client that does what lines on its input say; see client_test.go for the protocol.
'use strict';
const grpc = require('@grpc/grpc-js');
const lines = require('readline').createInterface({ input: process.stdin });

const channels = new Map();
const calls = new Map();
const bytes = (b) => b;
const micros = () => Number(process.hrtime.bigint() / 1000n);
const say = (event) => process.stdout.write(JSON.stringify({ at: micros(), ...event }) + '\n');

function channel(order) {
  if (!channels.has(order.channel)) {
    const options = { 'grpc.use_local_subchannel_pool': 1, 'grpc.enable_http_proxy': 0 };
    channels.set(order.channel, new grpc.Client(order.target, grpc.credentials.createInsecure(), options));
  }
  return channels.get(order.channel);
}

const orders = {
  connect(order) {
    channel(order).waitForReady(Date.now() + order.within, () => say({ id: order.channel, event: 'connected' }));
  },
  call(order) {
    const metadata = new grpc.Metadata();
    metadata.set('call-id', order.id);
    const options = { deadline: Date.now() + order.deadline };
    let messages = 0;
    let wrong;
    say({ id: order.id, event: 'started' });
    const call = order.unary
      ? channel(order).makeUnaryRequest(order.path, bytes, bytes, Buffer.from('ask'), metadata, options, (err) => { if (!err) messages++; })
      : channel(order).makeServerStreamRequest(order.path, bytes, bytes, Buffer.from('ask'), metadata, options);
    calls.set(order.id, call);
    call.on('data', (message) => {
      if (++messages === 1) say({ id: order.id, event: 'message' });
      if (message.toString() !== String(messages)) wrong ??= `message ${messages} is "${message}"`;
    });
    call.on('error', () => {}); // the status says it, too
    call.on('status', (status) => {
      calls.delete(order.id);
      const code = Number.isInteger(status.code) ? status.code : -1;
      const ended = status.metadata.get('levada-stream-ended').join();
      const end = { at: micros(), id: order.id, event: 'end', code, text: status.details, ended };
      setImmediate(() => say({ ...end, messages, wrong })); // the callback of a unary call comes after its status
    });
  },
  cancel(order) { calls.get(order.id)?.cancel(); },
  close(order) {
    channels.get(order.channel)?.close();
    channels.delete(order.channel);
  },
};

lines.on('line', (line) => { const order = JSON.parse(line); orders[order.op](order); });
lines.on('close', () => process.exit(0));
