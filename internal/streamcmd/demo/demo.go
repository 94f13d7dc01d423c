// Package demo is `levada stream demo`: two services as processes of this program, a table that one copies from the other, and faults at random points of
// the stream. At the end it compares the copy with the original.
//
// demo.go has the run, faults.go what breaks, processes.go the children, roles.go what the children do, verify.go the comparison. What the children are
// and how they are reached is made of the same parts as the commands (package connect).
package demo

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamcmd/connect"
	"github.com/levada-io/levada/internal/streamcmd/jobtext"
	"github.com/levada-io/levada/stream"
)

// faults are what the demo can do, in the order in which it names them.
var faults = []string{"panic", "cut", "restart", "sigterm", "oom", "broker", "database"}

// flags are those of the command.
type flags struct {
	store, notifier string
	users, rate     int
	seed            uint64
	memory          int64
	timeout         time.Duration
	keep            bool
	output          string
}

// New returns the command.
func New() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use: "demo [panic|cut|restart|sigterm|oom|broker|database|all]...", Short: "Two services, a table of users, and everything that can go wrong",
		Long: `A service has a table of users, and another one copies it over a gRPC stream, exactly once. Both are real processes. At random points of the
stream something breaks; at the end the copy is compared with the original, record for record.

  panic     a user whose record panics its handler
  cut       the connection between the services is reset
  restart   the producing service is killed and started again
  sigterm   a worker gets SIGTERM, as in a rolling update
  oom       a user whose record makes its handler take all memory, so that the process is killed, again and again
  broker    the broker that wakes workers is killed
  database  the database of the copy: SQLite is locked by another process for a while, Postgres ends all connections

Without a name: all of them. Nothing is left when it ends, unless --keep is given.`,
		Example: `  levada stream demo
  levada stream demo oom cut --users 50000
  levada stream demo --store postgres://localhost/test`,
		RunE: func(cmd *cobra.Command, args []string) error { return execute(cmd, args, &f) },
	}
	set := cmd.Flags()
	set.StringVar(&f.store, "store", "", "postgres:// URL of the copy, with two workers, in a schema of the demo's own (default: a SQLite file, with one worker)")
	set.StringVar(&f.notifier, "notifier", "", "amqp:// or nats:// URL of a broker of yours (default: one of the demo's own, where there is something to break)")
	set.IntVar(&f.users, "users", 200000, "users in the table")
	set.IntVar(&f.rate, "rate", 0, "users per second that the producer sends at most (default: all of them in 12 seconds)")
	set.Uint64Var(&f.seed, "seed", 0, "what chance begins with; 0: another one each time")
	set.Int64Var(&f.memory, "memory", 256, "MiB that a worker may take")
	set.DurationVar(&f.timeout, "timeout", 3*time.Minute, "give up after this long")
	set.BoolVar(&f.keep, "keep", false, "keep the files, or the schema, and say where they are")
	commandline.Output(set, &f.output, "text", "json")
	return cmd
}

// choose returns the faults that the arguments name.
func choose(args []string) (map[string]bool, error) {
	chosen := map[string]bool{}
	for _, name := range args {
		switch {
		case slices.Contains(faults, name):
			chosen[name] = true
		case name != "all":
			return nil, commandline.Usagef("demo: unknown fault %q, expected one of %s, all", name, strings.Join(faults, ", "))
		}
	}
	if len(args) == 0 || slices.Contains(args, "all") {
		for _, name := range faults {
			chosen[name] = true
		}
	}
	return chosen, nil
}

// check refuses what the demo cannot do, and sets what is not given.
func (f *flags) check() error {
	switch {
	case f.users < 1000 || f.users > 100_000_000:
		return commandline.Usagef("--users is %d: expected 1000 to 100000000", f.users)
	case f.rate < 0:
		return commandline.Usagef("--rate is %d, and must not be negative", f.rate)
	case f.memory < 128 || f.memory > 1024:
		return commandline.Usagef("--memory is %d: expected 128 to 1024 MiB", f.memory)
	case f.store != "" && !strings.HasPrefix(f.store, "postgres://") && !strings.HasPrefix(f.store, "postgresql://"):
		return commandline.Usagef("--store: expected a postgres:// URL; without it the demo makes a SQLite file of its own")
	}
	if f.seed == 0 {
		f.seed = rand.Uint64N(1_000_000) + 1
	}
	if f.rate == 0 {
		f.rate = max(f.users/12, 100)
	}
	return nil
}

func execute(cmd *cobra.Command, args []string, f *flags) error {
	chosen, err := choose(args)
	if err != nil {
		return err
	}
	if err := f.check(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(cmd.Context(), f.timeout, fmt.Errorf("the demo did not come to its end within %v (--timeout)", f.timeout))
	defer cancel()
	json := f.output == "json"
	d := &demo{
		flags: f, ctx: ctx, chance: rand.New(rand.NewPCG(f.seed, 0)), begun: time.Now(), json: json,
		out: &commandline.Screen{Out: cmd.OutOrStdout()}, live: commandline.IsTerminal(cmd.OutOrStdout()) && !json,
		happened: make(chan func(), 1000), stopping: make(chan struct{}),
	}
	err = d.run(chosen)
	if e := d.cleanUp(); err == nil {
		err = e
	}
	return err
}

// demo is one run. All its state belongs to the goroutine of run; others hand it what happened.
type demo struct {
	*flags
	ctx    context.Context
	chance *rand.Rand
	begun  time.Time
	out    *commandline.Screen
	live   bool // out is a terminal, which shows the progress
	json   bool
	// happened has what the other goroutines found: run executes it. stopping is closed when nothing reads it any more, so that none of them waits.
	happened chan func()
	stopping chan struct{}
	helpers  sync.WaitGroup // all goroutines but that of run; they have ended when the demo has

	dir, schema         string
	adminDSN, workerDSN string
	store               *connect.Database
	users               *userTable
	memory              *memoryLimit
	proxy               *cuttingProxy
	producer, broker    *child
	workers             []*child
	children            []*child

	plan    []fault // those to come, in the order of their records
	job     stream.Status
	owner   *child // who has the job
	meter   jobtext.Meter
	later   []task          // not in order
	aside   map[uint64]bool // quarantined records that were printed
	deaths  int             // of workers, by the record that takes all memory
	broken  bool            // the disconnect was printed, the new stream not yet
	settled bool
}

// fault breaks something when the job has come to a record. The breakage of panic and oom is in the record itself.
type fault struct {
	name string
	at   uint64
	do   func()
}

type task struct {
	when time.Time
	do   func()
}

// child is a process of the demo.
type child struct {
	name   string
	pod    string // uid
	args   []string
	cmd    *exec.Cmd
	stdin  io.Closer
	line   func(string) // its output
	wanted bool         // it is to run
	killed string       // why the demo has ended it
	gone   chan struct{}
	died   bool
	taken  string // the claim is printed with its next event, when the crash state is known
}

func (d *demo) say(text string, args ...any) {
	text = fmt.Sprintf(text, args...)
	if d.json {
		_ = commandline.WriteJSON(d.out, false, map[string]any{"seconds": time.Since(d.begun).Seconds(), "text": text, "records": d.job.Progress.Records})
		return
	}
	fmt.Fprintf(d.out, "%6.1fs  %s\n", time.Since(d.begun).Seconds(), text)
}

// plain is text without a time.
func (d *demo) plain(text string, args ...any) {
	if !d.json {
		fmt.Fprintf(d.out, text+"\n", args...)
	}
}

func comma(n uint64) string { return humanize.Comma(int64(n)) }

func (d *demo) run(chosen map[string]bool) error {
	if err := d.prepare(chosen); err != nil {
		return err
	}
	if err := d.startAll(chosen); err != nil {
		return err
	}
	if err := d.submit(); err != nil {
		return err
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !d.settled {
		select {
		case <-d.ctx.Done():
			return context.Cause(d.ctx)
		case do := <-d.happened:
			do()
		case now := <-tick.C:
			if err := d.look(now); err != nil {
				return err
			}
		}
	}
	return d.verify()
}

func (d *demo) submit() (err error) {
	if d.job, err = d.store.Submit(d.ctx, stream.Job{Stream: streamName, DedupeKey: "demo"}); err != nil {
		return err
	}
	d.say("a job is submitted: copy all users, exactly once")
	if d.notifier == "" {
		return nil
	}
	notifier := connect.NotifierFlags{URL: d.notifier}
	return notifier.Send(d.ctx, d.store, io.Discard, d.job.Job)
}

// prepare makes the places and the plan.
func (d *demo) prepare(chosen map[string]bool) (err error) {
	if d.dir, err = os.MkdirTemp("", "levada-demo-"); err != nil {
		return err
	}
	d.aside = map[uint64]bool{}
	d.adminDSN = filepath.Join(d.dir, "users.db")
	d.workerDSN = d.adminDSN
	if d.flags.store != "" {
		if err := d.makeSchema(); err != nil {
			return err
		}
	}
	flag := connect.StoreFlags{Name: d.adminDSN}
	if d.store, err = flag.Open(d.ctx, true); err != nil {
		return err
	}
	d.memory = &memoryLimit{bytes: d.flags.memory << 20}
	if chosen["oom"] {
		d.memory = newMemoryLimit(d.memory.bytes)
		if d.memory.group == "" && residentMemory(d.ctx, os.Getpid()) == 0 {
			d.plain("oom is left out: on this system neither a control group nor a process's memory limit is available")
			delete(chosen, "oom")
		}
	}
	d.planFaults(chosen)
	return nil
}

// planFaults gives each fault a slot of the stream, in random order, and puts it into the middle of the slot, so that they do not meet.
func (d *demo) planFaults(chosen map[string]bool) {
	var names []string
	for _, name := range faults {
		if chosen[name] {
			names = append(names, name)
		}
	}
	d.chance.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	d.users = &userTable{count: d.flags.users, notes: map[uint64]string{}}
	do := map[string]func(){"cut": d.cut, "restart": d.restartProducer, "sigterm": d.stopWorker, "broker": d.killBroker, "database": d.breakDatabase}
	for i, name := range names {
		slot := uint64(d.users.count / (len(names) + 1))
		at := slot/2 + uint64(i)*slot + slot/4 + d.chance.Uint64N(slot/2) + 1
		d.plan = append(d.plan, fault{name, at, do[name]})
		switch name {
		case "panic":
			d.users.notes[at] = notePanic
		case "oom":
			d.users.notes[at] = noteMemory
		}
	}
}

// makeSchema makes a schema in the user's database for the demo alone.
func (d *demo) makeSchema() error {
	d.schema = fmt.Sprintf("levada_demo_%d_%d", os.Getpid(), d.seed)
	conn, err := pgx.Connect(d.ctx, d.flags.store)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(d.ctx))
	if _, err := conn.Exec(d.ctx, `create schema `+d.schema); err != nil {
		d.schema = ""
		return fmt.Errorf("make a schema for the demo: %w", err)
	}
	u, err := url.Parse(d.flags.store)
	if err != nil {
		return err
	}
	d.adminDSN, d.workerDSN = inSchema(*u, d.schema, "demo"), inSchema(*u, d.schema, "worker")
	return nil
}

// inSchema is a URL whose connections use the schema. Their name tells those of the workers from the demo's own, which the fault "database" leaves alone.
func inSchema(u url.URL, schema, role string) string {
	q := u.Query()
	q.Set("search_path", schema)
	q.Set("application_name", schema+"_"+role)
	u.RawQuery = q.Encode()
	return u.String()
}

// startAll starts the producer, a broker if one is to break, and the workers.
func (d *demo) startAll(chosen map[string]bool) error {
	d.plain("Two services: one has a table of %s users, the other copies it over a gRPC stream, exactly once. (seed %d)", comma(uint64(d.users.count)), d.seed)
	if err := d.startProducer(); err != nil {
		return err
	}
	if chosen["broker"] && d.notifier == "" {
		if err := d.startBroker(); err != nil {
			return err
		}
	}
	workers := 1
	if d.schema != "" {
		workers = 2
	}
	for i := range workers {
		if err := d.startWorker(i + 1); err != nil {
			return err
		}
	}
	if chosen["oom"] {
		d.plain("  memory    %s", d.memory.how())
	}
	return nil
}

func (d *demo) startProducer() error {
	var bad []string
	for id, note := range d.users.notes {
		bad = append(bad, fmt.Sprintf("%d=%s", id, note))
	}
	listen, err := freeAddress()
	if err != nil {
		return err
	}
	d.producer = d.child("producer", "demo-producer", "--listen", listen, "--users", fmt.Sprint(d.users.count), "--rate", fmt.Sprint(d.rate), "--bad", strings.Join(bad, ","))
	if err := d.startAndAwait(d.producer); err != nil {
		return err
	}
	if d.proxy, err = newCuttingProxy(listen); err != nil {
		return err
	}
	d.plain("  producer  pid %d, on %s, behind a small TCP proxy that can cut connections", d.producer.cmd.Process.Pid, listen)
	return nil
}

func (d *demo) startBroker() error {
	at, err := freeAddress()
	if err != nil {
		return err
	}
	d.broker = d.child("broker", "demo-broker", "--listen", at, "--data", filepath.Join(d.dir, "broker"))
	if err := d.startAndAwait(d.broker); err != nil {
		return err
	}
	d.notifier = "nats://" + at
	d.plain("  broker    pid %d, NATS JetStream on %s: it only wakes workers", d.broker.cmd.Process.Pid, at)
	return nil
}

func (d *demo) startWorker(number int) error {
	w := d.child(fmt.Sprintf("worker %d", number), "demo-worker", "--store", d.workerDSN, "--target", d.proxy.address(), "--notifier", cmp.Or(d.notifier, "auto"))
	w.pod = stream.NewID()
	w.line = func(line string) { d.workerSaid(w, line) }
	d.workers = append(d.workers, w)
	if err := d.start(w); err != nil {
		return err
	}
	place := "table users of the schema " + d.schema
	if d.schema == "" {
		place = "table users of " + d.adminDSN
	}
	d.plain("  %s  pid %d, copies into %s", w.name, w.cmd.Process.Pid, place)
	return nil
}

// startAndAwait starts a child that prints a line when it is ready, and waits for that.
func (d *demo) startAndAwait(c *child) error {
	ready := make(chan string, 1)
	c.line = func(string) {
		select {
		case ready <- "":
		default:
		}
	}
	if err := d.start(c); err != nil {
		return err
	}
	return d.await(ready, c)
}

// await waits until a child says that it is there.
func (d *demo) await(ready <-chan string, c *child) error {
	for {
		select {
		case <-ready:
			return nil
		case do := <-d.happened:
			do()
		case <-c.gone:
			return fmt.Errorf("the %s did not start", c.name)
		case <-d.ctx.Done():
			return context.Cause(d.ctx)
		}
	}
}

// freeAddress finds a port that a process can have again and again.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// look asks the store how far the job has come, and breaks what is due.
func (d *demo) look(now time.Time) error {
	d.doDue(now)
	status, err := d.store.Get(d.ctx, d.job.ID)
	if err != nil {
		if d.ctx.Err() != nil {
			return context.Cause(d.ctx)
		}
		return nil // the database may be what is broken
	}
	d.job = status
	if d.live {
		d.out.Draw(d.progress(now))
	}
	for len(d.plan) > 0 && d.plan[0].at <= status.Progress.Records+1 {
		fault := d.plan[0]
		d.plan = d.plan[1:]
		if fault.do != nil && !status.State.Final() {
			fault.do()
		}
	}
	switch status.State {
	case stream.Completed:
		// The worker's events about it are not printed yet.
		d.in(100*time.Millisecond, func() { d.settled = true })
	case stream.Failed, stream.Cancelled, stream.Paused:
		return fmt.Errorf("the job is %s: %s: %s", status.State, status.Reason, status.LastError)
	}
	return nil
}

// doDue does the tasks whose time has come. A task may add others.
func (d *demo) doDue(now time.Time) {
	for i := 0; i < len(d.later); i++ {
		if task := d.later[i]; !now.Before(task.when) {
			d.later = slices.Delete(d.later, i, i+1)
			i--
			task.do()
		}
	}
}

func (d *demo) progress(now time.Time) string {
	rate := d.meter.Update(now, d.job.Progress.Records)
	const width = 24
	done := int(d.job.Progress.Records * width / uint64(d.users.count))
	return fmt.Sprintf("         [%s%s] %s of %s users, %s/s, attempt %d\n", strings.Repeat("=", done), strings.Repeat(" ", width-done),
		comma(d.job.Progress.Records), comma(uint64(d.users.count)), comma(uint64(rate)), d.job.Attempts)
}

// storeText is a store's name without its password.
func storeText(dsn string) string {
	if u, err := url.Parse(dsn); err == nil && u.User != nil {
		return u.Redacted()
	}
	return dsn
}

func shellWord(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
