package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// nodeProgram as the first argument makes this test binary a NATS server; the second is its nodeConfig in JSON.
const nodeProgram = "faults-broker-node"

// nodeConfig of one of the brokers of a cluster.
type nodeConfig struct {
	Name, Dir                string
	Client, Cluster, Monitor string // addresses to listen at
	Advertise                string // where clients reach it
	Routes                   []string
	// RoutesOnly makes other brokers reach it by their routes only, and not by the address that it listens at.
	RoutesOnly bool
}

// nodeMain is a NATS server that stores nothing it has not synced, until SIGTERM, or SIGUSR2, which lets clients leave first.
func nodeMain(config string) {
	var c nodeConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		panic(err)
	}
	opt := &server.Options{
		ServerName: c.Name, ClientAdvertise: c.Advertise, MaxPayload: 8 << 20,
		JetStream: true, StoreDir: c.Dir, JetStreamMaxMemory: 64 << 20, JetStreamMaxStore: 1 << 34, SyncAlways: true, SyncInterval: time.Minute,
		Routes: server.RoutesFromStr(strings.Join(c.Routes, ",")), LogFile: filepath.Join(c.Dir, "log"), Logtime: true,
		LameDuckDuration: 2 * time.Second, LameDuckGracePeriod: time.Second,
	}
	opt.Host, opt.Port = split(c.Client)
	opt.HTTPHost, opt.HTTPPort = split(c.Monitor)
	opt.Cluster.Name = "faults"
	opt.Cluster.Host, opt.Cluster.Port = split(c.Cluster)
	if c.RoutesOnly {
		opt.Cluster.Advertise = "127.0.0.1:1" // nothing listens there
	}
	s, err := server.NewServer(opt)
	if err != nil {
		panic(err)
	}
	s.ConfigureLogger()
	s.Start()
	s.WaitForShutdown()
	os.Exit(0)
}

func split(address string) (host string, port int) {
	host, p, err := net.SplitHostPort(address)
	if err == nil {
		port, err = strconv.Atoi(p)
	}
	if err != nil {
		panic(err)
	}
	return host, port
}

// node is one of the brokers of a cluster.
type node struct {
	nodeConfig
	relay *relay
	// routes are the relays between this node and others, in both directions; none unless the cluster is divisible.
	routes []*relay
	cmd    *exec.Cmd // nil while it is down
}

// isolate cuts the node off from the other brokers and from clients, as a network that drops its packets, or ends that.
func (n *node) isolate(isolated bool) {
	for _, r := range append(slices.Clone(n.routes), n.relay) {
		r.stall(isolated)
	}
}

func (n *node) start(t *testing.T) {
	t.Helper()
	b, err := json.Marshal(n.nodeConfig)
	if err != nil {
		t.Fatal(err)
	}
	n.cmd = exec.Command(self(t), nodeProgram, string(b))
	n.cmd.Stderr = os.Stderr
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// stop ends the node with SIGKILL, SIGTERM or SIGUSR2, and waits for it. One that does not end in good order is killed.
func (n *node) stop(signal syscall.Signal) {
	if n.cmd == nil {
		return
	}
	_ = n.cmd.Process.Signal(signal)
	kill := time.AfterFunc(20*time.Second, func() { _ = n.cmd.Process.Kill() })
	_ = n.cmd.Wait()
	kill.Stop()
	n.cmd = nil
}

func (n *node) freeze() { n.signal(syscall.SIGSTOP) }
func (n *node) thaw()   { n.signal(syscall.SIGCONT) }

func (n *node) signal(s syscall.Signal) {
	if n.cmd != nil {
		_ = n.cmd.Process.Signal(s)
	}
}

// healthy reports why the node is not ready: /healthz answers OK when all streams and consumers of the node have caught up.
func (n *node) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.Monitor+"/healthz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		var h server.HealthStatus
		_ = json.NewDecoder(resp.Body).Decode(&h)
		return fmt.Errorf("%s is not healthy: %s", n.Name, h.Error)
	}
	return nil
}

// cluster is three brokers, each behind a relay. Clients know the relays only.
type cluster struct {
	nodes   []*node
	damaged *node // nil, or the one whose files were damaged
}

// startCluster starts three brokers. Each has a loopback address of its own, so that no other process takes one of its ports while it is down.
func startCluster(t *testing.T) *cluster { return newCluster(t, false) }

// startDivisibleCluster is startCluster with relays between the brokers, too, so that one can be isolated. They cost CPU for all that is replicated.
func startDivisibleCluster(t *testing.T) *cluster { return newCluster(t, true) }

func newCluster(t *testing.T, divisible bool) *cluster {
	t.Helper()
	const size = 3
	c := &cluster{}
	var routes []string
	dir := t.TempDir()
	network := fmt.Sprintf("127.%d.%d", 1+rand.IntN(250), rand.IntN(250))
	for i := range size {
		address := func() string {
			l, err := net.Listen("tcp", fmt.Sprintf("%s.%d:0", network, i+1))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			return l.Addr().String()
		}
		n := &node{nodeConfig: nodeConfig{Name: fmt.Sprintf("n%d", i+1), Dir: filepath.Join(dir, strconv.Itoa(i+1)), Client: address(), Cluster: address(), Monitor: address()}}
		if err := os.Mkdir(n.Dir, 0o755); err != nil {
			t.Fatal(err)
		}
		n.relay = newRelay(t, n.Client)
		n.Advertise = n.relay.address()
		routes = append(routes, "nats://"+n.Cluster)
		c.nodes = append(c.nodes, n)
	}
	for _, n := range c.nodes {
		n.Routes = routes
		if divisible {
			n.Routes, n.RoutesOnly = nil, true
			for _, other := range c.nodes {
				if other != n {
					r := newRelay(t, other.Cluster)
					n.routes, other.routes = append(n.routes, r), append(other.routes, r)
					n.Routes = append(n.Routes, "nats://"+r.address())
				}
			}
		}
	}
	for _, n := range c.nodes {
		n.start(t)
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			n.stop(syscall.SIGKILL)
		}
	})
	c.awaitWhole(t)
	return c
}

// url names all brokers, by way of their relays.
func (c *cluster) url() string {
	var urls []string
	for _, n := range c.nodes {
		urls = append(urls, "nats://"+n.relay.address())
	}
	return strings.Join(urls, ",")
}

// wholeFor is how long three running brokers may take to be a healthy cluster. It is theirs alone: nothing of ours is in it.
const wholeFor = 90 * time.Second

// probeFails is how long a broker may fail its startup probe before its supervisor restarts it.
const probeFails = 30 * time.Second

// awaitWhole waits until all three are healthy.
func (c *cluster) awaitWhole(t *testing.T) {
	t.Helper()
	if n := c.damaged; n != nil {
		err := c.whenWhole(t, 20*time.Second)
		if err == nil {
			return
		}
		if n.healthy(t.Context()) != nil {
			// Some bits keep a NATS server from starting at all. Its operator removes the store then, and it fetches all from the others.
			t.Logf("%s does not start with what was damaged and is rebuilt: %v", n.Name, err)
			n.stop(syscall.SIGKILL)
			if err := os.RemoveAll(filepath.Join(n.Dir, "jetstream")); err != nil {
				t.Fatal(err)
			}
			n.start(t)
			c.damaged = nil
		}
	}
	for deadline := time.Now().Add(wholeFor); ; {
		err := c.whenWhole(t, probeFails)
		if err == nil {
			return
		}
		if time.Now().Before(deadline) {
			// A NATS server that comes back while its routes change can stay at "JetStream is still recovering meta layer" for good.
			for _, n := range c.nodes {
				if why := n.healthy(t.Context()); why != nil {
					t.Logf("%s is restarted, since its startup probe has failed for %v: %v", n.Name, probeFails, why)
					n.stop(syscall.SIGKILL)
					n.start(t)
				}
			}
			continue
		}
		for _, n := range c.nodes {
			logged, _ := os.ReadFile(filepath.Join(n.Dir, "log"))
			t.Logf("%s:\n%s", n.Name, last(logged, 1500))
		}
		t.Fatalf("the brokers were not a healthy cluster within %v: %v", wholeFor, err)
	}
}

// whenWhole waits until all three are healthy, and returns why they are not.
func (c *cluster) whenWhole(t *testing.T, most time.Duration) error {
	t.Helper()
	for deadline := time.Now().Add(most); ; time.Sleep(100 * time.Millisecond) {
		var err error
		for _, n := range c.nodes {
			if err == nil {
				err = n.healthy(t.Context())
			}
		}
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// client connects to the brokers themselves, not by way of the relays.
func (c *cluster) client(t *testing.T) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	var urls []string
	for _, n := range c.nodes {
		urls = append(urls, "nats://"+n.Client)
	}
	conn, err := nats.Connect(strings.Join(urls, ","), nats.MaxReconnects(-1), nats.IgnoreDiscoveredServers(), nats.RetryOnFailedConnect(true))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn, jetstream.WithDefaultTimeout(5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	return conn, js
}

// leader is the node that leads a stream of the pipeline's buffers.
func (c *cluster) leader(t *testing.T) *node {
	t.Helper()
	conn, js := c.client(t)
	defer conn.Close()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		streams := js.ListStreams(t.Context())
		for info := range streams.Info() {
			at := slices.IndexFunc(c.nodes, func(n *node) bool { return info.Cluster != nil && n.Name == info.Cluster.Leader })
			if at >= 0 && !strings.HasPrefix(info.Config.Name, "KV_") {
				return c.nodes[at]
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("no stream has a leader: %v", streams.Err())
		}
	}
}

// lead makes the node the leader of every stream.
func (c *cluster) lead(t *testing.T, n *node) {
	t.Helper()
	conn, js := c.client(t)
	defer conn.Close()
	deadline := time.Now().Add(30 * time.Second)
	for {
		behind := []string{}
		streams := js.ListStreams(t.Context())
		for info := range streams.Info() {
			if info.Cluster == nil || info.Cluster.Leader == n.Name {
				continue
			}
			behind = append(behind, info.Config.Name)
			_, _ = conn.Request("$JS.API.STREAM.LEADER.STEPDOWN."+info.Config.Name, []byte(`{"placement":{"preferred":"`+n.Name+`"}}`), 2*time.Second)
		}
		if len(behind) == 0 && streams.Err() == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s did not become the leader of %v: %v", n.Name, behind, streams.Err())
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// damage flips a bit in about every span bytes of what the node, which must be down, has stored in its streams. It returns how many.
func (n *node) damage(t *testing.T, random *rand.Rand, span int) (flipped int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(n.Dir, "jetstream", "$G", "streams", "*", "msgs", "*.blk"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.Contains(file, "KV_") {
			continue // the state of the pipeline: the test is about messages
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for at := random.IntN(span); at < len(b); at += 1 + random.IntN(2*span) {
			b[at] ^= 1 << random.IntN(8)
			flipped++
		}
		if err := os.WriteFile(file, b, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	return flipped
}
