// Bench runs the cases below cases/ one after the other on this machine, and the raw limit beside them, and reports CPU seconds for a million messages: all
// processes together, broker and function included. Wall time is shown, and lies on a busy machine.
//
//	go run ./bench [-messages 1000000] [-size 256] [CASE...]
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"sigs.k8s.io/yaml"
)

// goal is what a case is measured against; zero fields are not.
type goal struct {
	// Broker is embedded (in the process of levada run), process (levada broker), or redis (redis-server, which must be in PATH).
	Broker string `json:"broker"`
	// Processes is --processes of levada run; empty runs everything in one.
	Processes            string  `json:"processes"`
	CPUSecondsPerMillion float64 `json:"cpuSecondsPerMillion"`
	MemoryMB             float64 `json:"memoryMB"`
	// Seconds is how long an endless case runs.
	Seconds int     `json:"seconds"`
	P50ms   float64 `json:"p50ms"`
	P99ms   float64 `json:"p99ms"`
}

type result struct {
	name           string
	cpu, wall      time.Duration
	levada, broker time.Duration // parts of cpu
	maxRSS         int64         // bytes, of levada run or its largest child
	messages       float64
	p50, p99       float64 // ms
	goal           goal
}

type bench struct {
	dir      string
	messages int
	size     int
	sync     time.Duration
}

func main() {
	messages := flag.Int("messages", 1_000_000, "messages of a case that ends")
	size := flag.Int("size", 256, "bytes of a message")
	repeat := flag.Int("repeat", 1, "runs of each case")
	interval := flag.Duration("sync-interval", 0, "sync interval of the broker; 0 is before each acknowledgement, the default of levada")
	profile := flag.String("profile", "", "directory for a CPU profile of levada run in each case")
	flag.Parse()
	if err := run(&bench{messages: *messages, size: *size, sync: *interval}, flag.Args(), *repeat, *profile); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(b *bench, names []string, repeat int, profile string) (err error) {
	if b.dir, err = os.MkdirTemp("", "levada-bench"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if len(names) == 0 {
		paths, err := filepath.Glob("bench/cases/*/pipeline.yaml")
		if err != nil || len(paths) == 0 {
			return errors.New("there are no cases: run it from the root of the repository")
		}
		for _, p := range paths {
			names = append(names, filepath.Base(filepath.Dir(p)))
		}
	}
	if err := b.prepare(); err != nil {
		return err
	}
	var results []result
	for range repeat {
		raw, err := b.raw()
		if err != nil {
			return fmt.Errorf("raw limit: %w", err)
		}
		results = append(results, raw)
		for _, name := range names {
			r, err := b.run(name, profile)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			results = append(results, r)
			report(os.Stderr, results[len(results)-1:])
		}
	}
	report(os.Stdout, results)
	return nil
}

// prepare builds what is run, and writes the input.
func (b *bench) prepare() error {
	for _, target := range []string{"./cmd/levada", "./examples/functions/cat", "./examples/functions/poison", "./bench/raw"} {
		if out, err := exec.Command("go", "build", "-o", b.dir+"/", target).CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s", target, err, out)
		}
	}
	f, err := os.Create(filepath.Join(b.dir, "input"))
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	for i := range b.messages {
		fmt.Fprintf(w, "%0*d\n", b.size-1, i)
	}
	return errors.Join(w.Flush(), f.Close())
}

func cpu(s *os.ProcessState) time.Duration { return s.UserTime() + s.SystemTime() }

func rss(s *os.ProcessState) int64 { return s.SysUsage().(*syscall.Rusage).Maxrss << 10 }

// raw measures the limit: the same messages in frames of 500 through two streams of the same broker, with nothing between.
func (b *bench) raw() (result, error) {
	store, err := os.MkdirTemp(b.dir, "raw")
	if err != nil {
		return result{}, err
	}
	cmd := exec.Command(filepath.Join(b.dir, "raw"), "-dir", store, "-messages", fmt.Sprint(b.messages), "-size", fmt.Sprint(b.size), "-sync-interval", b.sync.String())
	begun := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return result{}, fmt.Errorf("%w: %s", err, out)
	}
	c := cpu(cmd.ProcessState)
	return result{name: "raw limit: frames of 500, two hops", cpu: c, levada: c, wall: time.Since(begun), maxRSS: rss(cmd.ProcessState), messages: float64(b.messages)}, nil
}

func (b *bench) run(name, profile string) (r result, err error) {
	r.name = name
	dir := filepath.Join("bench", "cases", name)
	text, err := os.ReadFile(filepath.Join(dir, "goal.yaml"))
	if err != nil {
		return r, err
	}
	if err := yaml.UnmarshalStrict(text, &r.goal); err != nil {
		return r, err
	}
	work, err := os.MkdirTemp(b.dir, "run")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(work)
	manifest, err := os.ReadFile(filepath.Join(dir, "pipeline.yaml"))
	if err != nil {
		return r, err
	}
	input := strings.NewReplacer("INPUT", filepath.Join(b.dir, "input"), "OUTPUT", filepath.Join(work, "output"), "CONTRACT_CAT", filepath.Join(b.dir, "poison"), "CAT", filepath.Join(b.dir, "cat"))
	file := filepath.Join(work, "pipeline.yaml")
	if err := os.WriteFile(file, []byte(input.Replace(string(manifest))), 0o600); err != nil {
		return r, err
	}
	listen := freeAddress()
	args := []string{"run", file, "--data", filepath.Join(work, "data"), "--quiet", "--log-format", "text", "--listen", listen}
	broker, flags, err := b.broker(r.goal.Broker, work)
	if err != nil {
		return r, err
	}
	args = append(args, flags...)
	if r.goal.Processes != "" {
		args = append(args, "--processes", r.goal.Processes)
	}
	if broker == nil && b.sync > 0 {
		args = append(args, "--sync-interval", b.sync.String())
	}
	levada := exec.Command(filepath.Join(b.dir, "levada"), args...)
	output := &strings.Builder{}
	levada.Stdout, levada.Stderr = output, output
	begun := time.Now()
	if err := levada.Start(); err != nil {
		return r, err
	}
	if profile != "" {
		go saveProfile(listen, filepath.Join(profile, name+".pb.gz"))
	}
	if r.goal.Seconds > 0 {
		time.Sleep(time.Duration(r.goal.Seconds) * time.Second) // the load lasts as long
		if r.p50, r.p99, r.messages, err = latency(listen); err != nil {
			return r, fmt.Errorf("%w: %s", err, output)
		}
		if err := levada.Process.Signal(syscall.SIGTERM); err != nil {
			return r, err
		}
	} else {
		r.messages = float64(b.messages)
	}
	err = levada.Wait()
	r.wall = time.Since(begun)
	if broker != nil {
		_ = broker.Process.Signal(syscall.SIGTERM)
		_ = broker.Wait()
		r.broker = cpu(broker.ProcessState)
	}
	if err != nil && levada.ProcessState.ExitCode() != 143 { // ended by our SIGTERM, with messages under way
		return r, fmt.Errorf("levada: %w: %s", err, output)
	}
	r.levada, r.maxRSS = cpu(levada.ProcessState), rss(levada.ProcessState)
	r.cpu = r.levada + r.broker
	return r, nil
}

// broker starts a broker that is a process of its own, and returns the flags that name it; nil for the one in levada run.
func (b *bench) broker(kind, work string) (broker *exec.Cmd, flags []string, err error) {
	address := freeAddress()
	switch kind {
	case "process":
		broker = exec.Command(filepath.Join(b.dir, "levada"), "broker", "--data", filepath.Join(work, "broker"), "--listen", address, "--sync-interval", b.sync.String())
		return broker, []string{"--nats", "nats://" + address}, broker.Start()
	case "redis":
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, nil, err
		}
		fsync := "always"
		if b.sync > 0 {
			fsync = "everysec"
		}
		broker = exec.Command("redis-server", "--bind", "127.0.0.1", "--port", port, "--dir", work, "--save", "", "--appendonly", "yes", "--appendfsync", fsync)
		return broker, []string{"--redis", "redis://" + address}, broker.Start()
	}
	return nil, nil, nil
}

func freeAddress() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "127.0.0.1:0"
	}
	defer l.Close()
	return l.Addr().String()
}

// saveProfile takes a CPU profile of a run, once it answers.
func saveProfile(address, file string) {
	for range 100 {
		res, err := http.Get("http://" + address + "/debug/pprof/profile?seconds=3")
		if err != nil {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		defer res.Body.Close()
		if f, err := os.Create(file); err == nil {
			_, _ = io.Copy(f, res.Body)
			_ = f.Close()
		}
		return
	}
}

// latency reads the quantiles of the end-to-end latency, in ms, and how many messages there were.
func latency(address string) (p50, p99, count float64, err error) {
	res, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		return 0, 0, 0, err
	}
	defer res.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(res.Body)
	if err != nil {
		return 0, 0, 0, err
	}
	f := families["levada_end_to_end_latency_seconds"]
	if f == nil {
		return 0, 0, 0, errors.New("no latency was measured")
	}
	for _, m := range f.GetMetric() {
		if h := m.GetHistogram(); h.GetSampleCount() > 0 {
			return 1000 * quantile(h, 0.5), 1000 * quantile(h, 0.99), float64(h.GetSampleCount()), nil
		}
	}
	return 0, 0, 0, errors.New("nothing reached the sink")
}

// quantile interpolates within a bucket, as Prometheus does.
func quantile(h *dto.Histogram, q float64) float64 {
	rank := q * float64(h.GetSampleCount())
	below, lower := 0.0, 0.0
	for _, b := range h.GetBucket() {
		if c := float64(b.GetCumulativeCount()); c >= rank {
			return lower + (b.GetUpperBound()-lower)*(rank-below)/max(1, c-below)
		}
		below, lower = float64(b.GetCumulativeCount()), b.GetUpperBound()
	}
	return lower
}

func report(out io.Writer, results []result) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "case\tCPU-s/million\tgoal\tof it broker\tmessages/s\tmemory MB\tp50 ms\tp99 ms\t")
	for _, r := range results {
		per := r.cpu.Seconds() / r.messages * 1e6
		cells := []string{r.name, fmt.Sprintf("%.2f", per), number(r.goal.CPUSecondsPerMillion), number(r.broker.Seconds() / r.messages * 1e6), fmt.Sprintf("%.0f", r.messages/r.wall.Seconds()), fmt.Sprintf("%.0f", float64(r.maxRSS)/1e6), number(r.p50), number(r.p99)}
		missed := r.goal.CPUSecondsPerMillion > 0 && per > r.goal.CPUSecondsPerMillion || r.goal.MemoryMB > 0 && float64(r.maxRSS)/1e6 > r.goal.MemoryMB || r.goal.P50ms > 0 && r.p50 > r.goal.P50ms || r.goal.P99ms > 0 && r.p99 > r.goal.P99ms
		if missed {
			cells = append(cells, "misses its goal")
		}
		fmt.Fprintln(w, strings.Join(cells, "\t")+"\t")
	}
	_ = w.Flush()
}

func number(f float64) string {
	if f == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", f)
}
