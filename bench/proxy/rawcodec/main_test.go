package main

import (
	"io"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/levada-io/levada/bench/proxy/rawmessage"
)

// TestForward: headers, messages, trailers and the status come through as they are.
func TestForward(t *testing.T) {
	backend := serve(t, func(_ any, caller grpc.ServerStream) error {
		sent, _ := metadata.FromIncomingContext(caller.Context())
		if err := caller.SendHeader(metadata.Pairs("header", sent.Get("asked")[0])); err != nil {
			return err
		}
		caller.SetTrailer(metadata.Pairs("trailer", "b"))
		for {
			var m rawmessage.Message
			if err := caller.RecvMsg(&m); err == io.EOF {
				return status.Error(codes.Aborted, "as it was said")
			} else if err != nil {
				return err
			}
			if err := caller.SendMsg(&m); err != nil {
				return err
			}
		}
	})
	toBackend := dial(t, backend)
	proxy := serve(t, func(_ any, caller grpc.ServerStream) error { return forward(toBackend, caller) })

	ctx := metadata.AppendToOutgoingContext(t.Context(), "asked", "a")
	s, err := dial(t, proxy).NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/any.Service/Method")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one", "", "three"} {
		if err := s.SendMsg(rawmessage.New([]byte(text))); err != nil {
			t.Fatal(err)
		}
		var m rawmessage.Message
		if err := s.RecvMsg(&m); err != nil {
			t.Fatal(err)
		}
		if got := string(m.Data.Materialize()); got != text {
			t.Errorf("%q came back as %q", text, got)
		}
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	err = s.RecvMsg(&rawmessage.Message{})
	if status.Code(err) != codes.Aborted || status.Convert(err).Message() != "as it was said" {
		t.Errorf("the backend's status came as %v", err)
	}
	if header, err := s.Header(); err != nil || len(header.Get("header")) != 1 || header.Get("header")[0] != "a" {
		t.Errorf("header %v (error %v), want header: a", header, err)
	}
	if trailer := s.Trailer().Get("trailer"); len(trailer) != 1 || trailer[0] != "b" {
		t.Errorf("trailer %v, want b", trailer)
	}
}

func serve(t *testing.T, handler grpc.StreamHandler) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.ForceServerCodecV2(rawmessage.Codec{}), grpc.UnknownServiceHandler(handler))
	ended := make(chan error)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-ended; err != nil {
			t.Errorf("Serve returned %v", err)
		}
	})
	return listener.Addr().String()
}

func dial(t *testing.T, address string) *grpc.ClientConn {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawmessage.Codec{})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}
