//go:build unix

// Package testnats starts NATS servers with JetStream for tests, as internal/testserver starts other servers. They are processes of the test binary itself and need no
// program. It is apart from testserver so that the libraries' tests, which use that, do not depend on a NATS server.
package testnats

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/testserver"
)

// configFile names the configuration file in the environment of a test binary that is a NATS server.
const configFile = "LEVADA_TESTSERVER_NATS"

// A NATS server is this binary, started again: so it is of the version in go.mod, and a process that can be killed and frozen.
func init() {
	if file := os.Getenv(configFile); file != "" {
		serve(file)
	}
}

func serve(file string) {
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	opt, err := server.ProcessConfigFile(file)
	if err != nil {
		fail(err)
	}
	opt.NoSigs = true
	s, err := server.NewServer(opt)
	if err != nil {
		fail(err)
	}
	s.ConfigureLogger()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		s.Shutdown()
	}()
	s.Start()
	s.WaitForShutdown()
	os.Exit(0)
}

// Option changes how a NATS server is set up.
type Option func(*node)

type node struct {
	store, settings, jetstream, credentials string
	name, routes                            string
	address, clusterAddress                 string
}

// Store puts the server's streams into dir, for instance a small file system.
func Store(dir string) Option { return func(n *node) { n.store = dir } }

// Settings adds lines to the server's configuration file.
func Settings(lines string) Option { return func(n *node) { n.settings += lines + "\n" } }

// JetStream replaces the jetstream block's settings but for the directory; "off" is a server without JetStream.
// Default: sync_interval: always, which levada asks of its users.
func JetStream(lines string) Option { return func(n *node) { n.jetstream = lines } }

// Login puts "user:password" into the URLs.
func Login(userAndPassword string) Option {
	return func(n *node) { n.credentials = userAndPassword + "@" }
}

// Server returns a NATS server with JetStream for this test alone.
func Server(t testing.TB, options ...Option) *testserver.Server {
	t.Helper()
	n := &node{name: "n1"}
	for _, o := range options {
		o(n)
	}
	return testserver.Start(t, n.spec(func() { n.address = testserver.FreeAddress(t) }))
}

// Cluster is some NATS servers that replicate streams among them.
type Cluster struct {
	t testing.TB
	// Servers may be stopped, killed, frozen and started one by one.
	Servers []*testserver.Server
	stores  []string
}

// NewCluster returns a cluster of size servers for this test alone, with a leader for its metadata.
func NewCluster(t testing.TB, size int, options ...Option) *Cluster {
	t.Helper()
	nodes := make([]*node, size)
	var routes []string
	for i := range nodes {
		nodes[i] = &node{name: fmt.Sprintf("n%d", i+1)}
		for _, o := range options {
			o(nodes[i])
		}
		nodes[i].address, nodes[i].clusterAddress = testserver.FreeAddress(t), testserver.FreeAddress(t)
		routes = append(routes, "nats-route://"+nodes[i].clusterAddress)
	}
	c := &Cluster{t: t}
	for _, n := range nodes {
		n.routes = strings.Join(routes, ", ")
		s := testserver.Start(t, n.spec(func() {}))
		c.Servers = append(c.Servers, s)
		c.stores = append(c.stores, filepath.Join(cmp.Or(n.store, filepath.Join(s.Dir(), "store")), "jetstream"))
	}
	c.WaitReady()
	return c
}

// URL has the addresses of all servers.
func (c *Cluster) URL() string {
	urls := make([]string, len(c.Servers))
	for i, s := range c.Servers {
		urls[i] = s.DSN()
	}
	return strings.Join(urls, ",")
}

// Store is the directory of a server's streams: {account}/streams/{stream}/msgs.
func (c *Cluster) Store(server int) string { return c.stores[server] }

// Connect returns a client of the running servers, which is closed with the test.
func (c *Cluster) Connect() jetstream.JetStream {
	c.t.Helper()
	return Connect(c.t, c.URL())
}

// Connect returns a client of JetStream that reconnects for as long as the test runs.
func Connect(t testing.TB, url string) jetstream.JetStream {
	t.Helper()
	conn, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.RetryOnFailedConnect(true),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// WaitReady waits until the cluster answers requests to JetStream.
func (c *Cluster) WaitReady() {
	c.t.Helper()
	js := c.Connect()
	c.until("the cluster has no leader", func(ctx context.Context) error {
		// Asking for the account answers before streams can be made, so one is.
		cfg := jetstream.StreamConfig{Name: "LEVADA_TEST_READY", Subjects: []string{"levada.test.ready"}, Replicas: len(c.Servers), Storage: jetstream.MemoryStorage}
		if _, err := js.CreateOrUpdateStream(ctx, cfg); err != nil {
			return err
		}
		return js.DeleteStream(ctx, cfg.Name)
	})
	js.Conn().Close()
}

// Leader is the index of the server that leads a stream. It waits for one.
func (c *Cluster) Leader(stream string) (leader int) {
	c.t.Helper()
	js := c.Connect()
	defer js.Conn().Close()
	c.until("stream "+stream+" has no leader", func(ctx context.Context) error {
		s, err := js.Stream(ctx, stream)
		if err != nil {
			return err
		}
		info := s.CachedInfo().Cluster
		if info == nil || info.Leader == "" {
			return fmt.Errorf("no leader")
		}
		leader = slices.Index([]string{"n1", "n2", "n3", "n4", "n5"}, info.Leader)
		return nil
	})
	return leader
}

// StepDown makes the leader of a stream give up, until another one leads that satisfies want.
func (c *Cluster) StepDown(stream string, want func(leader int) bool) {
	c.t.Helper()
	js := c.Connect()
	defer js.Conn().Close()
	c.until("stream "+stream+" does not get the leader that the test wants", func(ctx context.Context) error {
		leader := c.Leader(stream)
		if want(leader) {
			return nil
		}
		if _, err := js.Conn().RequestWithContext(ctx, "$JS.API.STREAM.LEADER.STEPDOWN."+stream, nil); err != nil {
			return err
		}
		return fmt.Errorf("n%d leads", leader+1)
	})
}

// until calls do until it succeeds.
func (c *Cluster) until(complaint string, do func(ctx context.Context) error) {
	c.t.Helper()
	deadline := time.Now().Add(testserver.StartTimeout)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		err := do(ctx)
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("test server: %s: %v", complaint, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

var executable = sync.OnceValues(os.Executable)

// spec is how the node is run. address chooses its address, and is called again until it is free.
func (n *node) spec(address func()) testserver.Spec {
	return testserver.Spec{
		Name: "NATS", Program: executable,
		Prepare: func(dir string) (dsn string, env []string, err error) {
			address()
			config := fmt.Sprintf("server_name: %s\nlisten: %q\n%s", n.name, n.address, n.settings)
			if n.jetstream != "off" {
				config += fmt.Sprintf("jetstream { store_dir: %q\n%s\n}\n", cmp.Or(n.store, filepath.Join(dir, "store")), cmp.Or(n.jetstream, "sync_interval: always"))
			}
			if n.routes != "" {
				config += fmt.Sprintf("cluster { name: test\nlisten: %q\nroutes: [%s]\n}\n", n.clusterAddress, n.routes)
			}
			file := filepath.Join(dir, "nats.conf")
			return "nats://" + n.credentials + n.address, []string{configFile + "=" + file, "GOCOVERDIR=" + dir}, os.WriteFile(file, []byte(config), 0o644)
		},
		Ready: func(_ context.Context, dsn string) error {
			// A connection is enough: JetStream of a cluster needs the other servers.
			conn, err := nats.Connect(dsn, nats.Timeout(2*time.Second))
			if err != nil {
				return err
			}
			conn.Close()
			return nil
		},
	}
}
