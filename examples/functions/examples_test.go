package functions

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	functionv1 "github.com/levada-io/levada/proto/levada/function/v1"
	mapv1 "github.com/levada-io/levada/proto/numaflow/map/v1"
	sinkv1 "github.com/levada-io/levada/proto/numaflow/sink/v1"
	sourcev1 "github.com/levada-io/levada/proto/numaflow/source/v1"
	sourcetransformv1 "github.com/levada-io/levada/proto/numaflow/sourcetransform/v1"
)

// process is an example, built and run as a platform would run it.
type process struct {
	*exec.Cmd
	t        *testing.T
	dir      string
	announce string
	conn     *grpc.ClientConn
}

func prepare(t *testing.T, name string, env ...string) *process {
	t.Helper()
	dir, err := os.MkdirTemp("", "fn") // t.TempDir is too long for a socket
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	binary := filepath.Join(dir, name)
	if out, err := exec.Command("go", "build", "-o", binary, "./"+name).CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	p := &process{Cmd: exec.Command(binary), t: t, dir: dir, announce: filepath.Join(dir, "announce")}
	check(t, os.WriteFile(p.announce, make([]byte, 8192), 0o600))
	p.Env = append(os.Environ(), append(env, "LEVADA_SOCKET_DIR="+dir, "LEVADA_ANNOUNCE_FILE="+p.announce)...)
	return p
}

func (p *process) start(socket, info string) {
	p.t.Helper()
	check(p.t, p.Cmd.Start())
	p.t.Cleanup(func() { _ = p.Process.Kill() })
	for range 500 {
		if _, err := os.Stat(filepath.Join(p.dir, info)); err == nil {
			conn, err := grpc.NewClient("unix:"+filepath.Join(p.dir, socket), grpc.WithTransportCredentials(insecure.NewCredentials()))
			check(p.t, err)
			p.conn = conn
			p.t.Cleanup(func() { conn.Close() })
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	p.t.Fatal("the function did not become ready")
}

func (p *process) announced() (words []uint64) {
	content, err := os.ReadFile(p.announce)
	check(p.t, err)
	for ; len(content) > 0; content = content[8:] {
		if word := binary.LittleEndian.Uint64(content); word != 0 {
			words = append(words, word)
		}
	}
	return words
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func startMap(t *testing.T, name string) *process {
	t.Helper()
	p := prepare(t, name)
	p.start("map.sock", "mapper-server-info")
	return p
}

// apply sends one block and returns what each message became: its values with their tags, joined by |.
func (p *process) apply(values ...string) []string {
	p.t.Helper()
	stream, err := functionv1.NewBlockMapClient(p.conn).MapFn(p.t.Context())
	check(p.t, err)
	block := &functionv1.MapBlock{Id: 5}
	for _, value := range values {
		block.Messages = append(block.Messages, &functionv1.MapMessage{Value: []byte(value)})
	}
	check(p.t, stream.Send(block))
	got := make([]string, len(values))
	for left := len(values); left > 0; {
		result, err := stream.Recv()
		check(p.t, err)
		for i, outcome := range result.GetOutcomes() {
			var parts []string
			for _, r := range outcome.GetResults() {
				parts = append(parts, strings.Join(append(r.GetTags(), string(r.GetValue())), ":"))
			}
			if outcome.GetError() != "" {
				parts = []string{"! " + outcome.GetError()}
			}
			got[int(result.GetFirst())+i] = strings.Join(parts, "|")
			left--
		}
	}
	return got
}

func TestMaps(t *testing.T) {
	for name, c := range map[string][2][]string{
		"cat":      {{"a", ""}, {"a", ""}},
		"upper":    {{"abc", "1"}, {"ABC", "1"}},
		"even-odd": {{"2", "-3", "x"}, {"even:2", "odd:-3", "neither:x"}},
		"flatmap":  {{"a,b,,c", "", "d"}, {"a|b|c", "", "d"}},
		"poison":   {{"ok", "error", "panic"}, {"ok", "! poison: error", "! panic: poison: panic"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := startMap(t, name)
			if got := p.apply(c[0]...); !slices.Equal(got, c[1]) {
				t.Errorf("got %q, want %q", got, c[1])
			}
			check(t, p.Process.Signal(syscall.SIGTERM))
			p.conn.Close()
			check(t, p.Wait())
		})
	}
}

// A function that is killed leaves behind which message killed it.
func TestPoisonAnnouncesBeforeItCrashes(t *testing.T) {
	p := startMap(t, "poison")
	stream, err := functionv1.NewBlockMapClient(p.conn).MapFn(t.Context())
	check(t, err)
	block := &functionv1.MapBlock{Id: 9}
	for _, value := range []string{"a", "hang", "b", "crash", "c"} {
		block.Messages = append(block.Messages, &functionv1.MapMessage{Value: []byte(value)})
	}
	check(t, stream.Send(block))
	for err == nil {
		_, err = stream.Recv()
	}
	if err := p.Wait(); p.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the process ended with %v", err)
	}
	got := p.announced()
	slices.Sort(got)
	hang, crash := uint64(9<<20|2), uint64(9<<20|4)
	if !slices.Contains(got, crash) || !slices.Contains(got, hang) {
		t.Errorf("announced %x, want %x and %x among them", got, hang, crash)
	}
}

// By the Numaflow contract a panic ends the process, with its own exit code.
func TestPoisonPanicExitsNonZero(t *testing.T) {
	p := startMap(t, "poison")
	stream, err := mapv1.NewMapClient(p.conn).MapFn(t.Context())
	check(t, err)
	check(t, stream.Send(&mapv1.MapRequest{Handshake: &mapv1.Handshake{Sot: true}}))
	_, err = stream.Recv()
	check(t, err)
	check(t, stream.Send(&mapv1.MapRequest{Id: "6", Request: &mapv1.MapRequest_Request{Value: []byte("panic")}}))
	if _, err := stream.Recv(); err == nil || !strings.Contains(err.Error(), "UDF_EXECUTION_ERROR(udf): panic: poison") {
		t.Errorf("stream ended with %v", err)
	}
	if err := p.Wait(); err == nil {
		t.Error("the process ended with 0")
	}
	if got := p.announced(); !slices.Equal(got, []uint64{1<<63 | 7}) {
		t.Errorf("announced %x: whose failure it was must stay", got)
	}
}

func TestCounterSourceReadsAgainWhatWasNotAcknowledged(t *testing.T) {
	p := prepare(t, "counter-source", "COUNT=10")
	p.start("source.sock", "sourcer-server-info")
	client := sourcev1.NewSourceClient(p.conn)
	read := func(ctx context.Context) []string {
		t.Helper()
		stream, err := client.ReadFn(ctx)
		check(t, err)
		check(t, stream.Send(&sourcev1.ReadRequest{Handshake: &sourcev1.Handshake{Sot: true}}))
		_, err = stream.Recv()
		check(t, err)
		check(t, stream.Send(&sourcev1.ReadRequest{Request: &sourcev1.ReadRequest_Request{NumRecords: 100, TimeoutInMs: 1000}}))
		var got []string
		for {
			response, err := stream.Recv()
			check(t, err)
			if response.GetStatus().GetEot() {
				check(t, stream.CloseSend())
				if _, err := stream.Recv(); err != io.EOF {
					t.Fatal(err)
				}
				return got
			}
			got = append(got, string(response.GetResult().GetPayload()))
		}
	}
	want := map[string]bool{}
	for i := range 10 {
		want[strconv.Itoa(i)] = true
	}
	first := read(t.Context())
	if len(first) != 10 {
		t.Fatalf("read %v", first)
	}
	ack, err := client.AckFn(t.Context())
	check(t, err)
	check(t, ack.Send(&sourcev1.AckRequest{Handshake: &sourcev1.Handshake{Sot: true}}))
	_, err = ack.Recv()
	check(t, err)
	var offsets []*sourcev1.Offset
	for _, text := range []string{"0", "3", "7"} {
		offsets = append(offsets, &sourcev1.Offset{Offset: []byte(text)})
		delete(want, text)
	}
	check(t, ack.Send(&sourcev1.AckRequest{Request: &sourcev1.AckRequest_Request{Offsets: offsets}}))
	_, err = ack.Recv()
	check(t, err)
	again := read(t.Context())
	if left := slices.Sorted(maps.Keys(want)); !slices.Equal(again, left) {
		t.Errorf("read again %v, want %v", again, left)
	}
}

func TestLogSink(t *testing.T) {
	p := prepare(t, "log-sink")
	out, err := p.StdoutPipe()
	check(t, err)
	p.start("sink.sock", "sinker-server-info")
	stream, err := sinkv1.NewSinkClient(p.conn).SinkFn(t.Context())
	check(t, err)
	check(t, stream.Send(&sinkv1.SinkRequest{Handshake: &sinkv1.Handshake{Sot: true}}))
	check(t, stream.Send(&sinkv1.SinkRequest{Request: &sinkv1.SinkRequest_Request{Id: "1", Value: []byte("hello"), Keys: []string{"k"}}}))
	check(t, stream.Send(&sinkv1.SinkRequest{Status: &sinkv1.TransmissionStatus{Eot: true}}))
	for {
		response, err := stream.Recv()
		check(t, err)
		if response.GetStatus().GetEot() {
			break
		}
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	check(t, err)
	if want := `{"id":"1","eventTime":"1970-01-01T00:00:00Z","keys":["k"],"value":"hello"}` + "\n"; line != want {
		t.Errorf("wrote %s, want %s", line, want)
	}
}

func TestTimeTransformer(t *testing.T) {
	p := prepare(t, "time-transformer")
	p.start("sourcetransform.sock", "sourcetransformer-server-info")
	stream, err := sourcetransformv1.NewSourceTransformClient(p.conn).SourceTransformFn(t.Context())
	check(t, err)
	check(t, stream.Send(&sourcetransformv1.SourceTransformRequest{Handshake: &sourcetransformv1.Handshake{Sot: true}}))
	_, err = stream.Recv()
	check(t, err)
	for value, want := range map[string]string{
		`{"time":"2026-11-21T10:00:00Z"}`: "2026-11-21T10:00:00Z",
		"2026-11-21T10:00:00.5+01:00 x":   "2026-11-21T09:00:00.5Z",
		"no time":                         "U+005C__DROP__",
	} {
		check(t, stream.Send(&sourcetransformv1.SourceTransformRequest{Request: &sourcetransformv1.SourceTransformRequest_Request{Value: []byte(value)}}))
		response, err := stream.Recv()
		check(t, err)
		got := response.GetResults()[0].GetEventTime().AsTime().Format(time.RFC3339Nano)
		if tags := response.GetResults()[0].GetTags(); len(tags) > 0 {
			got = tags[0]
		}
		if got != want {
			t.Errorf("%s: %s, want %s", value, got, want)
		}
	}
}
