//go:build unix

package testserver

import (
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
)

// natsConfig names the configuration file in the environment of a test binary that is a NATS server.
const natsConfig = "LEVADA_TESTSERVER_NATS"

// A NATS server is this binary, started again: so it is of the version in go.mod, and a process that can be killed and frozen.
func init() {
	if file := os.Getenv(natsConfig); file != "" {
		serveNATS(file)
	}
}

func serveNATS(file string) {
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

// NATSOption changes how a NATS server is set up.
type NATSOption func(*natsNode)

type natsNode struct {
	store, settings, jetstream, credentials string
	name, routes                            string
	port, clusterPort                       int
}

// NATSStore puts the server's streams into dir, for instance a small file system.
func NATSStore(dir string) NATSOption { return func(n *natsNode) { n.store = dir } }

// NATSSettings adds lines to the server's configuration file.
func NATSSettings(lines string) NATSOption { return func(n *natsNode) { n.settings += lines + "\n" } }

// NATSJetStream replaces the jetstream block's settings but for the directory; "off" is a server without JetStream.
// Default: sync_interval: always, which levada asks of its users.
func NATSJetStream(lines string) NATSOption { return func(n *natsNode) { n.jetstream = lines } }

// NATSLogin puts "user:password" into the URLs.
func NATSLogin(userAndPassword string) NATSOption {
	return func(n *natsNode) { n.credentials = userAndPassword + "@" }
}

// NATS returns a NATS server with JetStream for this test alone.
func NATS(t testing.TB, options ...NATSOption) *Server {
	t.Helper()
	nn := &natsNode{name: "n1"}
	for _, o := range options {
		o(nn)
	}
	return own(t, nn.kind(func() (err error) {
		nn.port, err = freePort()
		return err
	}))
}

// NATSCluster is some NATS servers that replicate streams among them.
type NATSCluster struct {
	t testing.TB
	// Servers may be stopped, killed, frozen and started one by one.
	Servers []*Server
	stores  []string
}

// NewNATSCluster returns a cluster of size servers for this test alone, with a leader for its metadata.
func NewNATSCluster(t testing.TB, size int, options ...NATSOption) *NATSCluster {
	t.Helper()
	nodes := make([]*natsNode, size)
	var routes []string
	for i := range nodes {
		nodes[i] = &natsNode{name: fmt.Sprintf("n%d", i+1)}
		for _, o := range options {
			o(nodes[i])
		}
		for _, port := range []*int{&nodes[i].port, &nodes[i].clusterPort} {
			p, err := freePort()
			if err != nil {
				t.Fatal(err)
			}
			*port = p
		}
		routes = append(routes, "nats-route://"+address(nodes[i].clusterPort))
	}
	c := &NATSCluster{t: t}
	for _, n := range nodes {
		n.routes = strings.Join(routes, ", ")
		s := own(t, n.kind(func() error { return nil }))
		c.Servers = append(c.Servers, s)
		c.stores = append(c.stores, filepath.Join(cmpOr(n.store, filepath.Join(s.n.dir, "store")), "jetstream"))
	}
	c.WaitReady()
	return c
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// URL has the addresses of all servers.
func (c *NATSCluster) URL() string {
	urls := make([]string, len(c.Servers))
	for i, s := range c.Servers {
		urls[i] = s.DSN()
	}
	return strings.Join(urls, ",")
}

// Store is the directory of a server's streams: {account}/streams/{stream}/msgs.
func (c *NATSCluster) Store(server int) string { return c.stores[server] }

// Connect returns a client of the running servers, which is closed with the test.
func (c *NATSCluster) Connect() jetstream.JetStream {
	c.t.Helper()
	return ConnectNATS(c.t, c.URL())
}

// ConnectNATS returns a client of JetStream that reconnects for as long as the test runs.
func ConnectNATS(t testing.TB, url string) jetstream.JetStream {
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
func (c *NATSCluster) WaitReady() {
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
func (c *NATSCluster) Leader(stream string) (leader int) {
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
func (c *NATSCluster) StepDown(stream string, want func(leader int) bool) {
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
func (c *NATSCluster) until(complaint string, do func(ctx context.Context) error) {
	c.t.Helper()
	deadline := time.Now().Add(startTimeout)
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

var natsExecutable = sync.OnceValues(os.Executable)

// kind is how the node is run. ports chooses its ports, again and again until they are free.
func (nn *natsNode) kind(ports func() error) *kind {
	return &kind{
		name: "NATS", find: natsExecutable, signals: [3]syscall.Signal{Fast: syscall.SIGTERM, Immediate: syscall.SIGKILL, Killed: syscall.SIGKILL},
		prepare: func(n *node, program string) error {
			if err := ports(); err != nil {
				return err
			}
			config := fmt.Sprintf("server_name: %s\nlisten: %q\n%s", nn.name, address(nn.port), nn.settings)
			switch nn.jetstream {
			case "off":
			case "":
				nn.jetstream = "sync_interval: always"
				fallthrough
			default:
				config += fmt.Sprintf("jetstream { store_dir: %q\n%s\n}\n", cmpOr(nn.store, filepath.Join(n.dir, "store")), nn.jetstream)
			}
			if nn.routes != "" {
				config += fmt.Sprintf("cluster { name: test\nlisten: %q\nroutes: [%s]\n}\n", address(nn.clusterPort), nn.routes)
			}
			if err := n.write("nats.conf", config, 0o644); err != nil {
				return err
			}
			n.dsn = "nats://" + nn.credentials + address(nn.port)
			n.processes = []process{{
				name: "nats", argv: []string{program}, last: "KILL",
				env: []string{natsConfig + "=" + filepath.Join(n.dir, "nats.conf"), "GOCOVERDIR=" + n.dir},
			}}
			return nil
		},
		ready: func(ctx context.Context, n *node) error {
			// A connection is enough: JetStream of a cluster needs the other servers.
			conn, err := nats.Connect(n.dsn, nats.Timeout(2*time.Second))
			if err != nil {
				return err
			}
			conn.Close()
			return nil
		},
	}
}
