# python3 with multiprocessing: workers, queues, locks and shared memory; and asyncio beside it.
import asyncio, multiprocessing as mp, os, sys, time
HERE = os.environ["FREEZE_HERE"]
def gone_ahead(): return os.path.exists(HERE + "/go")
def work(tasks, results, lock, total):
    for n in iter(tasks.get, None):
        time.sleep(0.001)
        with lock: total.value += n
        results.put(n * n)
async def echo(reader, writer):
    while line := await reader.readline(): writer.write(line); await writer.drain()
    writer.close()
async def talk(port, tag, said):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    n = after = 0
    while after < 20:
        line = b"%s %d\n" % (tag, n); writer.write(line)
        if await reader.readline() != line: sys.exit("another line came back")
        n += 1; after += gone_ahead()
        if n == 5: said.append(tag)
        await asyncio.sleep(0.005)
    writer.close()
    return n
async def chat():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port, said = server.sockets[0].getsockname()[1], []
    talks = [asyncio.create_task(talk(port, b"%d" % i, said)) for i in range(3)]
    while len(said) < 3: await asyncio.sleep(0.01)
    open(HERE + "/ready", "w").close()
    for n in await asyncio.gather(*talks): assert n >= 20
    server.close()
if __name__ == "__main__":
    os.chdir(HERE)
    ctx = mp.get_context("fork")
    tasks, results, lock, total = ctx.Queue(), ctx.Queue(), ctx.Lock(), ctx.Value("q", 0)
    workers = [ctx.Process(target=work, args=(tasks, results, lock, total)) for _ in range(3)]
    for w in workers: w.start()
    N = 6000
    for n in range(N): tasks.put(n)
    for _ in workers: tasks.put(None)
    asyncio.run(chat())
    assert sorted(results.get() for _ in range(N)) == [n * n for n in range(N)]
    for w in workers: w.join(); assert w.exitcode == 0
    assert total.value == sum(range(N)), total.value
