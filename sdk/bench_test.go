package sdk

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	functionv1 "github.com/levada-io/levada/proto/levada/function/v1"
	mapv1 "github.com/levada-io/levada/proto/numaflow/map/v1"
)

// envBenchChild makes the test binary a cat function, so that its CPU time can be separated from the client's.
const envBenchChild = "LEVADA_SDK_BENCH_CHILD"

func cat(_ context.Context, m Message) ([]Result, error) {
	return []Result{{Keys: m.Keys, Value: m.Value}}, nil
}

func benchChild() {
	if name := os.Getenv("LEVADA_SDK_BENCH_PROFILE"); name != "" {
		file, err := os.Create(name)
		if err != nil {
			panic(err)
		}
		_ = pprof.StartCPUProfile(file)
		defer pprof.StopCPUProfile()
	}
	if err := ServeMap(context.Background(), MapFunc(cat)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func startChild(b *testing.B) (*exec.Cmd, *grpc.ClientConn) {
	dir, err := os.MkdirTemp("", "sdk")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	announce := filepath.Join(dir, "announce")
	ok(b, os.WriteFile(announce, make([]byte, announceFileSize), 0o600))
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), envBenchChild+"=1", envSocketDir+"="+dir, envAnnounceFile+"="+announce)
	child.Stderr = os.Stderr
	ok(b, child.Start())
	for {
		if _, err := os.Stat(filepath.Join(dir, mapInfo)); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return child, dial(b, filepath.Join(dir, "map.sock"))
}

// report ends the child and reports the CPU time of both sides for each message.
func report(b *testing.B, child *exec.Cmd, conn *grpc.ClientConn, began time.Duration, messages int) {
	b.StopTimer()
	client := cpuTime(b) - began
	conn.Close()
	ok(b, child.Process.Signal(syscall.SIGTERM))
	ok(b, child.Wait())
	usage := child.ProcessState.UserTime() + child.ProcessState.SystemTime()
	perMessage := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 / float64(messages) }
	b.ReportMetric(perMessage(usage), "server-us/msg")
	b.ReportMetric(perMessage(client), "client-us/msg")
	b.ReportMetric(float64(messages)/b.Elapsed().Seconds(), "msg/s")
}

func cpuTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	ok(b, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkBlock is the block path: an operation is a block of 500 messages of 256 bytes. The client sends and receives ready-made bytes.
func BenchmarkBlock(b *testing.B) {
	const size, inFlight = 500, 4
	child, conn := startChild(b)
	block := &functionv1.MapBlock{}
	for i := range size {
		block.Messages = append(block.Messages, &functionv1.MapMessage{
			Id: strconv.Itoa(1000000 + i), Keys: []string{"key"}, Value: make([]byte, 256),
			EventTimeNs: time.Now().UnixNano(), WatermarkNs: time.Now().UnixNano(),
		})
	}
	encoded, err := proto.Marshal(block)
	ok(b, err)
	stream := must(functionv1.NewBlockMapClient(conn).MapFn(context.Background(), grpc.ForceCodecV2(codec{})))(b)
	began := cpuTime(b)
	b.ResetTimer()
	slots := make(chan struct{}, inFlight)
	go func() {
		for range b.N {
			slots <- struct{}{}
			copied := append([]byte(nil), encoded...)
			if err := stream.SendMsg(reply{&copied}); err != nil {
				return
			}
		}
		stream.CloseSend()
	}()
	for answered := 0; answered < b.N*size; {
		var raw frame
		ok(b, stream.RecvMsg(&raw))
		before := answered
		for rest := []byte(raw); len(rest) > 0; {
			f, after, err := next(rest)
			ok(b, err)
			if f.num == 3 {
				answered++
			}
			rest = after
		}
		// Partial results of several blocks may mix; all in all, so many messages make a block.
		for range answered/size - before/size {
			<-slots
		}
	}
	report(b, child, conn, began, b.N*size)
}

// BenchmarkUnary is the contract's path: an operation is one message of 256 bytes.
func BenchmarkUnary(b *testing.B) {
	const inFlight = 500
	child, conn := startChild(b)
	request := &mapv1.MapRequest{Id: "1000000", Request: &mapv1.MapRequest_Request{
		Keys: []string{"key"}, Value: make([]byte, 256), EventTime: timestamppb.Now(), Watermark: timestamppb.Now(),
	}}
	encoded, err := proto.Marshal(request)
	ok(b, err)
	stream := must(mapv1.NewMapClient(conn).MapFn(context.Background(), grpc.ForceCodecV2(codec{})))(b)
	ok(b, stream.Send(&mapv1.MapRequest{Handshake: &mapv1.Handshake{Sot: true}}))
	must(stream.Recv())(b)
	began := cpuTime(b)
	b.ResetTimer()
	slots := make(chan struct{}, inFlight)
	go func() {
		for range b.N {
			slots <- struct{}{}
			if err := stream.SendMsg(reply{&encoded}); err != nil {
				return
			}
		}
		stream.CloseSend()
	}()
	for range b.N {
		var raw frame
		ok(b, stream.RecvMsg(&raw))
		<-slots
	}
	report(b, child, conn, began, b.N)
}
