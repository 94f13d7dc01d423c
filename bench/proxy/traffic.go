package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/levada-io/levada/bench/proxy/rawmessage"
)

// The backend's methods. The ending lets nghttpd know the content type.
const (
	unaryMethod  = "/bench.Bench/Unary.grpc" // sends the request back
	echoMethod   = "/bench.Bench/Echo"       // sends each message back
	streamMethod = "/bench.Bench/Stream"     // is asked for a number of messages of a size: two 32-bit integers, big-endian
)

const (
	// patience is how long a stream may take to open, and a single call to be answered.
	patience = 5 * time.Second
	// stall is how long a round may take: it needs a few seconds, more on a busy machine. What has not come then, never will.
	stall = 2 * time.Minute
)

var bidi = &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}

// play is what the processes do that this program starts.
func play(role string, args []string) error {
	flags := flag.NewFlagSet(role, flag.ExitOnError)
	var l load
	target := flags.String("target", "", "address")
	overTLS := flags.Bool("tls", false, "TLS, whatever the certificate")
	flags.IntVar(&l.Connections, "connections", 1, "")
	flags.IntVar(&l.Streams, "streams", 1, "of each connection")
	flags.IntVar(&l.Size, "size", 100, "bytes of a message")
	flags.IntVar(&l.BackendStreams, "backend-streams", 0, "of each connection, at most")
	flags.StringVar(&l.Kind, "kind", "unary", "")
	flags.Uint64Var(&l.Seed, "seed", 1, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if role == "backend" {
		return serve(*target, l)
	}
	g := generator{load: l, target: *target, credentials: insecure.NewCredentials(), message: rawmessage.New(l.payload())}
	if *overTLS {
		g.credentials = credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})
	}
	for range l.Connections {
		c, err := g.dial()
		if err != nil {
			return err
		}
		g.connections = append(g.connections, c)
	}
	return g.obey(os.Stdin, os.Stdout)
}

// payload is the bytes of a message.
func (l load) payload() []byte {
	random := rand.New(rand.NewPCG(l.Seed, 0))
	b := make([]byte, l.Size)
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	return b
}

// serve is the backend of grpc-go.
func serve(address string, l load) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	limit := uint32(math.MaxUint32)
	if l.BackendStreams > 0 {
		limit = uint32(l.BackendStreams)
	}
	payload := l.payload()
	return grpc.NewServer(grpc.MaxConcurrentStreams(limit), grpc.ForceServerCodecV2(rawmessage.Codec{}),
		grpc.UnknownServiceHandler(func(_ any, caller grpc.ServerStream) error {
			switch method, _ := grpc.MethodFromServerStream(caller); method {
			case unaryMethod, echoMethod:
				return echo(caller)
			case streamMethod:
				return sendMany(caller, payload)
			default:
				return status.Errorf(codes.Unimplemented, "there is no %s", method)
			}
		})).Serve(listener)
}

func echo(caller grpc.ServerStream) error {
	for {
		var m rawmessage.Message
		if err := caller.RecvMsg(&m); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := caller.SendMsg(&m); err != nil {
			return err
		}
	}
}

func sendMany(caller grpc.ServerStream, payload []byte) error {
	var m rawmessage.Message
	if err := caller.RecvMsg(&m); err != nil {
		return err
	}
	wanted := m.Data.Materialize()
	m.Data.Free()
	if len(wanted) != 4 {
		return status.Error(codes.InvalidArgument, "the request is not the number of messages, in 4 bytes")
	}
	for range binary.BigEndian.Uint32(wanted) {
		if err := caller.SendMsg(rawmessage.New(payload)); err != nil {
			return err
		}
	}
	return nil
}

// generator is the client of grpc-go: a process that makes its connections once and then executes commands, a line each.
type generator struct {
	load        load
	target      string
	credentials credentials.TransportCredentials
	connections []*grpc.ClientConn
	message     *rawmessage.Message
	// streams that stay open, from one command to the next
	streams []grpc.ClientStream
	// cancels end those streams.
	cancels []context.CancelFunc
}

// outcome is the answer to a command.
type outcome struct {
	Done    int
	Failed  int
	Error   string // of the first that failed
	Seconds float64
	// Percentiles in microseconds, of calls and round trips.
	P50, P99 float64
}

func (g *generator) dial() (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+g.target, grpc.WithTransportCredentials(g.credentials), grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawmessage.Codec{}), grpc.MaxCallRecvMsgSize(math.MaxInt32)))
}

// obey answers each command with a line of JSON: "run N" makes N requests, "open N" sees that N streams are open, "call" is one call on a
// connection of its own. "pace N" needs no target: see pace.
func (g *generator) obey(in io.Reader, out io.Writer) error {
	answers := json.NewEncoder(out)
	for lines := bufio.NewScanner(in); lines.Scan(); {
		var command string
		var n int
		if _, err := fmt.Sscan(lines.Text(), &command, &n); err != nil {
			return fmt.Errorf("command %q: %w", lines.Text(), err)
		}
		var o outcome
		switch {
		case command == "open":
			o = g.open(n)
		case command == "call":
			o = g.once()
		case command == "pace":
			o = pace(n)
		case command == "run" && g.load.Kind == "unary":
			o = g.unary(n)
		case command == "run" && g.load.Kind == "pingpong":
			o = g.pingpong(n)
		case command == "run" && g.load.Kind == "stream":
			o = g.stream(n)
		default:
			return fmt.Errorf("command %q of a load of kind %s", command, g.load.Kind)
		}
		if err := answers.Encode(o); err != nil {
			return err
		}
	}
	return nil
}

// each runs work for every worker at the same time, and puts together what they say.
func each(workers int, work func(i int, t *tally)) outcome {
	tallies := make([]tally, workers)
	var group sync.WaitGroup
	begun := time.Now()
	for i := range workers {
		group.Go(func() { work(i, &tallies[i]) })
	}
	group.Wait()
	o := outcome{Seconds: time.Since(begun).Seconds()}
	var took []time.Duration
	for _, t := range tallies {
		o.Done += t.done
		o.Failed += t.failed
		if t.err != nil && o.Error == "" {
			o.Error = t.err.Error()
		}
		took = append(took, t.took...)
	}
	if len(took) > 0 {
		slices.Sort(took)
		micros := func(share float64) float64 { return float64(percentile(took, share).Nanoseconds()) / 1e3 }
		o.P50, o.P99 = micros(0.5), micros(0.99)
	}
	return o
}

// percentile of sorted values, of which there is at least one: the smallest that the share of them does not exceed.
func percentile[T cmp.Ordered](sorted []T, share float64) T {
	return sorted[max(0, int(math.Ceil(share*float64(len(sorted))))-1)]
}

// tally is what one worker counts.
type tally struct {
	done, failed int
	err          error
	took         []time.Duration
}

func (t *tally) add(err error) {
	if err == nil {
		t.done++
		return
	}
	t.failed++
	if t.err == nil {
		t.err = err
	}
}

func (g *generator) unary(n int) outcome {
	var left atomic.Int64
	left.Store(int64(n))
	ctx, cancel := context.WithTimeout(context.Background(), stall)
	defer cancel()
	return each(g.load.Connections*g.load.Streams, func(i int, t *tally) {
		for left.Add(-1) >= 0 {
			begun := time.Now()
			t.add(g.call(ctx, g.connections[i%len(g.connections)]))
			t.took = append(t.took, time.Since(begun))
		}
	})
}

// call is one unary call, whose answer has the size of the request.
func (g *generator) call(ctx context.Context, c *grpc.ClientConn) error {
	var answer rawmessage.Message
	if err := c.Invoke(ctx, unaryMethod, g.message, &answer); err != nil {
		return err
	}
	return g.check(&answer)
}

// check looks at a message's size, and releases it.
func (g *generator) check(m *rawmessage.Message) error {
	size := m.Data.Len()
	m.Data.Free()
	if size != g.load.Size {
		return fmt.Errorf("a message of %d bytes came back as one of %d", g.load.Size, size)
	}
	return nil
}

func (g *generator) once() outcome {
	return each(1, func(_ int, t *tally) {
		c, err := g.dial()
		if err != nil {
			t.add(err)
			return
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		begun := time.Now()
		t.add(g.call(ctx, c))
		t.took = append(t.took, time.Since(begun))
	})
}

// pace writes and reads 100 bytes on a socket pair n times: what a machine's CPU time is worth, to compare runs on busier and quieter ones.
func pace(n int) outcome {
	return each(1, func(_ int, t *tally) {
		pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
		if err != nil {
			t.add(err)
			return
		}
		defer syscall.Close(pair[0])
		defer syscall.Close(pair[1])
		var b [100]byte
		for range n {
			if _, err = syscall.Write(pair[0], b[:]); err == nil {
				_, err = syscall.Read(pair[1], b[:])
			}
			t.add(err)
		}
	})
}

func (g *generator) trip(s grpc.ClientStream) error {
	if err := s.SendMsg(g.message); err != nil && err != io.EOF { // whose reason RecvMsg knows
		return err
	}
	var answer rawmessage.Message
	if err := s.RecvMsg(&answer); err != nil {
		return err
	}
	return g.check(&answer)
}

func (g *generator) pingpong(n int) outcome {
	if o := g.open(g.load.Connections * g.load.Streams); o.Failed > 0 {
		return o
	}
	late := time.AfterFunc(stall, func() {
		for _, cancel := range g.cancels {
			cancel()
		}
	})
	defer late.Stop()
	return each(len(g.streams), func(i int, t *tally) {
		for range n / len(g.streams) {
			begun := time.Now()
			err := g.trip(g.streams[i])
			t.add(err)
			if err != nil {
				return
			}
			t.took = append(t.took, time.Since(begun))
		}
	})
}

// open sees that n streams are open, each on which a message has come back.
func (g *generator) open(n int) outcome {
	had := len(g.streams)
	streams, cancels := make([]grpc.ClientStream, max(0, n-had)), make([]context.CancelFunc, max(0, n-had))
	for len(g.connections)*g.load.Streams < n {
		c, err := g.dial()
		if err != nil {
			return outcome{Failed: 1, Error: err.Error()}
		}
		g.connections = append(g.connections, c)
	}
	o := each(len(streams), func(i int, t *tally) {
		ctx, cancel := context.WithCancel(context.Background())
		late := time.AfterFunc(patience, cancel)
		s, err := g.connections[(had+i)/g.load.Streams].NewStream(ctx, bidi, echoMethod)
		if err == nil {
			err = g.trip(s)
		}
		if !late.Stop() {
			err = errors.Join(err, fmt.Errorf("not open after %v", patience))
		}
		t.add(err)
		if err != nil {
			cancel()
			return
		}
		streams[i], cancels[i] = s, cancel
	})
	for i, s := range streams {
		if s != nil {
			g.streams, g.cancels = append(g.streams, s), append(g.cancels, cancels[i])
		}
	}
	return o
}

func (g *generator) stream(n int) outcome {
	workers := g.load.Connections * g.load.Streams
	ctx, cancel := context.WithTimeout(context.Background(), stall)
	defer cancel()
	return each(workers, func(i int, t *tally) {
		s, err := g.connections[i%len(g.connections)].NewStream(ctx, bidi, streamMethod)
		if err == nil {
			var wanted [4]byte
			binary.BigEndian.PutUint32(wanted[:], uint32(n/workers))
			err = s.SendMsg(&rawmessage.Message{Data: mem.BufferSlice{mem.SliceBuffer(wanted[:])}})
		}
		for err == nil {
			var m rawmessage.Message
			if err = s.RecvMsg(&m); err == nil {
				if err = g.check(&m); err == nil {
					t.add(nil)
				}
			}
		}
		switch {
		case err != io.EOF:
			t.add(err)
		case t.done != n/workers:
			t.add(fmt.Errorf("the stream ended after %d messages of %d", t.done, n/workers))
		}
	})
}
