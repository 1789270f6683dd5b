// nodejs: its threads, timers, an HTTP server with a kept connection, a worker and a child process.
const fs = require('fs'), http = require('http'), { Worker } = require('worker_threads'), { spawn } = require('child_process');
const HERE = process.env.FREEZE_HERE, gone = () => fs.existsSync(HERE + '/go');
const fail = (why) => { console.error(why); process.exit(1); };
process.on('uncaughtException', (e) => fail(e.stack));
const child = spawn('cat', { stdio: ['pipe', 'pipe', 'inherit'] });
const worker = new Worker(`
  const { parentPort } = require('worker_threads');
  parentPort.on('message', (n) => { let s = 0; for (let i = 0; i < n; i++) s += i; parentPort.postMessage(s); });`, { eval: true });
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
const server = http.createServer((q, r) => r.end('page ' + q.url)).listen(0, '127.0.0.1', () => turn(0, 0));
const once = (emitter, name) => new Promise((done) => emitter.once(name, done));
const get = (path) => new Promise((done, no) => http.get({ port: server.address().port, path, agent }, (r) => {
  let text = ''; r.on('data', (d) => text += d); r.on('end', () => done(text)); }).on('error', no));
async function turn(n, after) {
  if (await get('/' + n) !== 'page /' + n) fail('another page');
  worker.postMessage(1000); if (await once(worker, 'message') !== 499500) fail('another sum');
  child.stdin.write('line ' + n + '\n'); if (String(await once(child.stdout, 'data')) !== 'line ' + n + '\n') fail('another line');
  if (n === 10) fs.writeFileSync(HERE + '/ready', '');
  if (after < 30) return setTimeout(turn, 5, n + 1, after + gone());
  child.stdin.end(); await once(child, 'exit'); await worker.terminate(); agent.destroy(); server.close();
}
