package hostile

import (
	"encoding/binary"

	"golang.org/x/net/http2/hpack"
)

// Honest is where the paths begin that the backend of the tests answers: below it, Large answers with 1 MiB, everything else sends each message back.
const Honest = "/hostile.Honest/"

func newDecoder() *hpack.Decoder { return hpack.NewDecoder(4096, nil) }

// Fields encodes names and values, in turn, as literals that leave no trace in a table: what an attack sends has no state unless it wants one.
func Fields(namesAndValues ...string) []byte {
	var b []byte
	for i := 0; i < len(namesAndValues); i += 2 {
		b = field(b, 0x00, namesAndValues[i], namesAndValues[i+1])
	}
	return b
}

// Request is the block of a well-formed call of gRPC, with further fields.
func Request(method string, more ...string) []byte {
	return Fields(append([]string{":method", "POST", ":scheme", "http", ":path", Honest + method, ":authority", "hostile",
		"content-type", "application/grpc", "te", "trailers"}, more...)...)
}

// Response is the block of a well-formed answer's headers, with further fields.
func Response(more ...string) []byte {
	return Fields(append([]string{":status", "200", "content-type", "application/grpc"}, more...)...)
}

// field appends one field; kind is 0x00 for a literal, 0x40 for one that also enters the table.
func field(b []byte, kind byte, name, value string) []byte {
	return text(text(append(b, kind), name), value)
}

func text(b []byte, s string) []byte {
	if len(s) < 127 {
		return append(append(b, byte(len(s))), s...)
	}
	return append(binary.AppendUvarint(append(b, 127), uint64(len(s)-127)), s...)
}

// Message is a message of gRPC with its five bytes in front.
func Message(p []byte) []byte { return append(Prefix(len(p)), p...) }

// Prefix is the five bytes in front of a message.
func Prefix(n int) []byte { return binary.BigEndian.AppendUint32([]byte{0}, uint32(n)) }
