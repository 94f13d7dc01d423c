// Package hostile attacks an HTTP/2 proxy from both sides, with frames that no library would send: a table of attacks (Front of a client, Back of a
// backend) over one small connection type. Its tests hold the proxy to what becomes of everybody else meanwhile.
package hostile
