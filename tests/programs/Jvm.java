// openjdk: its many threads, just-in-time code, garbage collection; threads that compute and hand over in turns.
import java.nio.file.*;
import java.util.*;
import java.util.concurrent.*;

public class Jvm {
    public static void main(String[] args) throws Exception {
        Path here = Path.of(System.getenv("FREEZE_HERE"));
        ExecutorService pool = Executors.newFixedThreadPool(4);
        SynchronousQueue<Long> turns = new SynchronousQueue<>();
        Map<Long, byte[]> kept = new ConcurrentHashMap<>();
        Thread giver = new Thread(() -> { try { for (long n = 0;; n++) turns.put(n); } catch (InterruptedException e) {} });
        giver.start();
        long expected = 0;
        int after = 0;
        while (after < 40) {
            if (turns.take() != expected++) throw new AssertionError("a turn was lost");
            List<Future<Long>> sums = new ArrayList<>();
            for (int t = 0; t < 4; t++) {
                final long seed = expected * 4 + t;
                sums.add(pool.submit(() -> { long s = seed; for (int i = 0; i < 20000; i++) s = s * 6364136223846793005L + i;
                    kept.put(seed % 500, new byte[4096]); return s; }));
            }
            for (int t = 0; t < 4; t++) {
                long s = expected * 4 + t;
                for (int i = 0; i < 20000; i++) s = s * 6364136223846793005L + i;
                if (sums.get(t).get() != s) throw new AssertionError("another sum");
            }
            if (expected == 50) Files.createFile(here.resolve("ready"));
            if (Files.exists(here.resolve("go"))) after++;
            Thread.sleep(2);
        }
        System.gc();
        giver.interrupt(); giver.join(); pool.shutdown();
        if (!pool.awaitTermination(60, TimeUnit.SECONDS)) throw new AssertionError("the pool does not end");
    }
}
