package guest

// The table of operations. It is filled at start-up and not in a variable's initialiser, since some operations start the
// guest program again and so refer to the table.
func init() {
	// process.go
	add[ListDescriptors]()
	add[ReadIdentity]()
	add[ListLinks]()
	add[ReadNetNS]()
	add[ReadFile]()
	add[ReadHostname]()
	add[ConnectUnix]()
	add[Exit]()
	add[Die]()
	add[StartDaemon]()
	addServer[CatchSignal]()
	addServer[Sleep]()
	add[RunShell]()

	// tcp_server.go, tcp.go, tcp_end.go, urgent.go, abandon.go
	addServer[ServeTCP]()
	add[AwaitReport]()
	add[Connect]()
	add[Exchange]()
	add[HalfClose]()
	add[Download]()
	add[AwaitReset]()
	add[CloseTogether]()
	add[Abort]()
	add[ExchangeUrgent]()
	add[AbandonConnects]()
	add[ReconnectAfterReset]()

	// load.go
	add[Hold]()
	add[EchoHeld]()
	add[DropHeld]()
	add[DialMany]()
	add[ConnectTogether]()
	add[Churn]()
	add[Fill]()
	add[HoldUnread]()
	addServer[Upload]()

	// udp.go, ping.go, names.go
	addServer[ServeUDP]()
	add[AskUDP]()
	add[AskUDPFromMany]()
	add[AskUDPInBatches]()
	add[Seek]()
	add[Ping]()
	add[QueryDNS]()
	add[RequestLease]()

	// http.go
	addServer[ServeHTTP]()
	add[GetHTTP]()
	add[MoveBulk]()

	// raw.go, flood.go, malformed.go
	add[SendSYN]()
	add[SendDatagram]()
	add[SendSYNs]()
	add[FloodSYNs]()
	add[SendLoopbackSYNs]()
	add[SendShortFrames]()
	add[SendBadHeaders]()
	add[SendUrgentFlags]()

	// rules.go, bridge.go
	add[FlushRules]()
	add[CountTables]()
	add[LoadFirewall]()
	add[MarkOutput]()
	add[AddPolicyRoute]()
	add[AddBridge]()
	add[AddVeth]()
	add[JoinBridge]()
	add[Configure]()
	add[RemoveAddress]()
	add[RemoveLink]()
	add[SetNeighbour]()
	add[ForgetNeighbour]()
	add[LoadMasquerade]()
}
