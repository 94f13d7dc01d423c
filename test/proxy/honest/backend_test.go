package honest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const service = "/levada.Honest/"

// backend is a grpc-go server. While it is browned out, its handlers answer nothing.
type backend struct {
	addr  string
	brown atomic.Bool
}

func startBackend(t *testing.T) *backend {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &backend{addr: l.Addr().String()}
	server := grpc.NewServer(grpc.UnknownServiceHandler(b.handle))
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return b
}

var block = wrapperspb.Bytes(make([]byte, 8<<10))

// numbered is the block of a stream of Count with this number.
func numbered(i int) []byte {
	return bytes.Repeat(binary.BigEndian.AppendUint32(nil, uint32(i)*2654435761+1), 2<<10)
}

func (b *backend) handle(_ any, stream grpc.ServerStream) error {
	path, _ := grpc.MethodFromServerStream(stream)
	ctx := stream.Context()
	m := new(wrapperspb.BytesValue)
	if err := stream.RecvMsg(m); err != nil {
		return err
	}
	if b.brown.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	switch strings.TrimPrefix(path, service) {
	case "Hang":
		<-ctx.Done()
		return ctx.Err()
	case "Late": // by the number of milliseconds in the message
		ms, _ := strconv.Atoi(string(m.Value))
		select {
		case <-time.After(time.Duration(ms) * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	case "Pour": // as much as the client takes
		for {
			if err := stream.SendMsg(block); err != nil {
				return err
			}
		}
	case "Count": // numbered blocks, as many as the message says
		n, _ := strconv.Atoi(string(m.Value))
		for i := range n {
			if err := stream.SendMsg(wrapperspb.Bytes(numbered(i))); err != nil {
				return err
			}
		}
		return nil
	case "Status": // with trailers of as many bytes as the message says
		n, _ := strconv.Atoi(string(m.Value))
		var pairs []string
		for i := range n / 1000 {
			pairs = append(pairs, fmt.Sprint("detail-", i), strings.Repeat("d", 960))
		}
		stream.SetTrailer(metadata.Pairs(pairs...))
		return status.Error(codes.InvalidArgument, "the order has no lines")
	}
	for {
		if err := stream.SendMsg(m); err != nil {
			return err
		}
		if err := stream.RecvMsg(m); err != nil {
			return nil // it has ended, as it should
		}
	}
}
